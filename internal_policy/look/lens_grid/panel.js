// The panel beside the grid: what the policies of one cell say, and how they change from one module to the next.

const MARKS = { resid_pre: ["○", ""], attn_out: ["■", "lg-attention"], mlp_out: ["◆", "lg-ffn"], resid_post: ["●", ""], final: ["★", "lg-final"] };

function createPanel(act) {
  const box = element("section", "lg-panel"), headline = element("h3", "lg-headline"), mode = element("span", "lg-mode");
  box.setAttribute("aria-label", "Selected cell");
  const came = element("p", "lg-token-line"), stats = element("dl", "lg-stats"), steps = element("div", "lg-steps");
  const foot = element("div", "lg-foot"), rank = createRank(act);
  const top = element("div", "lg-top-line");
  top.append(headline, mode);
  const keep = element("button", "lg-button", "Link to this cell"), free = element("button", "lg-button", "Unlock");
  for (const button of [keep, free]) button.type = "button";
  keep.onclick = act.keep;
  free.onclick = act.free;
  if (act.canKeep) foot.append(keep);
  foot.append(free, element("span", "lg-small lg-keys", `Arrow keys move${act.canKeep ? ", Enter puts the cell into the address" : ""}, Escape unlocks.`));
  box.append(top, came, stats, steps, rank.node, foot);
  const numbers = Array.from({ length: 4 }, () => {
    const row = element("div"), name = element("dt"), value = element("dd");
    row.append(name, value);
    stats.append(row);
    return { row, name, value };
  });
  const word = element("bdi", "lg-word"), at = element("span");
  came.append("Actual token ", word, at);
  let columns = [], built = "";

  // One list per site. They are made once, and rewritten for every cell.
  function build(names, source) {
    const wanted = `${names.join()} ${source.k}`;
    if (wanted === built) return;
    built = wanted;
    columns = names.map((name) => {
      const node = element("div", "lg-step"), title = element("div", `lg-step-title ${MARKS[name][1]}`), list = element("ol");
      list.setAttribute("aria-label", name === "final" ? "final" : source.siteTitle(name));
      const sub = element("div", "lg-step-sub");
      title.append(element("span", "lg-step-mark", MARKS[name][0]), element("span", "", name === "final" ? "final" : source.siteTitle(name)));
      const items = Array.from({ length: source.k }, () => {
        const row = element("li"), button = element("button", "lg-top");
        button.type = "button";
        button.append(element("span", "lg-top-token"), element("span", "lg-top-share"), element("span", "lg-top-move"));
        button.onclick = () => act.pin(button.token);
        row.append(button);
        return { row, button };
      });
      list.append(...items.map((item) => item.row));
      node.append(title, sub, list);
      return { name, node, sub, items };
    });
    steps.replaceChildren(...columns.map((column) => column.node));
  }

  function moved(now, before) {
    if (!before) return { text: "new", name: "lg-new", said: "new since the layer input" };
    if (before === now) return { text: "=", name: "", said: "same rank as in the layer input" };
    const up = before > now, by = Math.abs(before - now);
    return { text: `${up ? "▲" : "▼"}${by}`, name: up ? "lg-up" : "lg-down", said: `${up ? "up" : "down"} ${by} from the layer input` };
  }

  function drawStep(step, source, state, before, pins) {
    const { readout, layer, column } = state;
    const site = step.name === "final" ? "resid_post" : step.name;
    const found = source.top(readout, site, layer, column);
    const entropy = source.reader(readout, site, "entropy")(layer, column);
    write(step.sub, Number.isFinite(entropy) ? `${entropy.toFixed(2)} nats` : source.none(site, layer));
    step.items.forEach(({ row, button }, at) => {
      row.hidden = at >= found.length;
      if (row.hidden) return;
      const [token, share] = found[at], text = source.payload.vocabulary[token];
      const move = before ? moved(at + 1, before.get(token)) : { text: "", name: "", said: "" };
      const pin = pins.findIndex((each) => each.text === text);
      button.token = text;
      const [word, number, change] = button.children;
      write(word, source.glyph(token));
      write(number, brief(share));
      write(change, move.text);
      change.className = `lg-top-move ${move.name}`;
      button.classList.toggle("lg-actual", token === source.payload.actual[column]);
      button.style.setProperty("--lg-share", `${(100 * share).toFixed(1)}%`);
      button.style.setProperty("--lg-pin", pin < 0 ? "transparent" : PINS[pin]);
      button.setAttribute("aria-pressed", String(pin >= 0));
      button.setAttribute("aria-label", [source.glyph(token), percent(share), move.said, "pin"].filter(Boolean).join(", "));
    });
  }

  function drawSteps(source, state, pins) {
    const model = state.layer === source.model;
    const names = model ? ["final"] : READ_AT_A_CELL.filter((name) => source.sent(state.readout, name) && source.has(state.readout, name, "probability"));
    build(names, source);
    const input = names.includes("resid_pre") ? new Map(source.top(state.readout, "resid_pre", state.layer, state.column).map(([token], at) => [token, at + 1])) : null;
    for (const column of columns) drawStep(column, source, state, column.name === "resid_pre" ? null : input, pins);
  }

  function drawStats(source, state) {
    const { readout, site, layer, column } = state;
    const of = (name) => source.reader(readout, site, name)(layer, column);
    const rows = source.none(site, layer) ? [] : [["rank", source.actualRank(readout, site, layer, column).toLocaleString("en-US").replace("NaN", "–")], ["probability", percent(source.actualProbability(readout, site, layer, column))]];
    const shown = ["entropy", ["rank", "probability", "logprob", "entropy"].includes(state.measure) ? "kl" : state.measure];
    for (const name of shown) {
      const measure = source.measure(name), found = measure ? of(name) : NaN;
      if (Number.isFinite(found) && rows.length) rows.push([name === "kl" ? "KL from model" : measure.title.toLowerCase(), amount(found, measure)]);
    }
    numbers.forEach(({ row, name, value }, at) => {
      row.hidden = at >= rows.length;
      if (row.hidden) return;
      write(name, rows[at][0]);
      write(value, rows[at][1]);
    });
  }

  function draw(source, state, pins) {
    const { layer, column, locked } = state, model = layer === source.model, actual = source.glyph(source.payload.actual[column]);
    write(headline, `${model ? "Model’s own policy" : `Layer ${layer}`} · position ${source.position(column)}`);
    write(mode, locked ? "locked" : "preview");
    mode.classList.toggle("lg-is-locked", locked);
    free.disabled = !locked;
    write(word, actual);
    const none = source.none(state.site, layer);
    write(at, model ? "" : none ? `: ${none}` : ` at ${source.siteTitle(state.site)}`);
    drawStats(source, state);
    drawSteps(source, state, pins);
    rank.draw(source, state, pins);
  }
  return { node: box, draw };
}
