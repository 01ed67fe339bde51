// The panel beside two linked grids: the numbers and top tokens of A's cell and of B's, and how they differ.

function createPairPanel(act) {
  const box = element("section", "lg-panel lg-pair-panel"), top = element("div", "lg-top-line"), headline = element("h3", "lg-headline"), mode = element("span", "lg-mode");
  const came = element("p", "lg-token-line"), table = element("table", "lg-pair-numbers"), lists = element("div", "lg-pair-lists"), foot = element("div", "lg-foot");
  const keep = element("button", "lg-button", "Link to this cell"), free = element("button", "lg-button", "Unlock");
  box.setAttribute("aria-label", "Selected cell of A and B");
  for (const button of [keep, free]) button.type = "button";
  keep.onclick = act.keep;
  free.onclick = act.free;
  top.append(headline, mode);
  foot.append(...(act.canKeep ? [keep] : []), free, element("span", "lg-small lg-keys", `Arrow keys move${act.canKeep ? ", Enter puts the cell into the address" : ""}, Escape unlocks.`));
  box.append(top, came, table, lists, foot);

  // The measures that the table lists: the chosen one first.
  function measuresOf(view, sources) {
    const names = [view.measure.name, "rank", "logprob", "probability", "entropy", "kl"];
    return [...new Set(names)].filter((name) => sources.every((source) => source.measure(name))).slice(0, 5);
  }

  function row(cells, tag = "td") {
    const made = element("tr");
    made.append(...cells.map((text, at) => {
      const cell = element(at ? tag : "th", "", text);
      if (tag === "th" || !at) cell.setAttribute("scope", tag === "th" ? "col" : "row");
      return cell;
    }));
    return made;
  }

  function drawNumbers(sources, readouts, state, places, view, same) {
    const body = measuresOf(view, sources).map((name) => {
      const measure = sources[0].measure(name), change = differenceOf(measure);
      const [a, b] = sources.map((source, at) => source.reader(readouts[at], state.site, name)(places[at].layer, places[at].column));
      if (![a, b].some(Number.isFinite)) return null;
      const by = change.of(a, b), apart = !Number.isFinite(by) ? "" : name === "rank" ? `${b > a ? "+" : ""}${(b - a).toLocaleString("en-US")}`.replace("-", "−") : amount(by, { ...change, unit: name === "probability" ? change.unit : "" });
      const bare = { ...measure, unit: "" };
      return row([`${measure.title}${measure.unit ? ` (${measure.unit})` : ""}`, ...[a, b].map((number) => (Number.isFinite(number) ? amount(number, bare) : "–")), ...(same ? [apart] : [])]);
    });
    table.replaceChildren(row(["", "A", "B", ...(same ? ["B − A"] : [])], "th"), ...body.filter(Boolean));
  }

  // The top tokens of one side; those that the other side lacks are marked.
  function listOf(side, sources, readouts, state, places) {
    const node = element("div", "lg-pair-list"), list = element("ol");
    const found = [0, 1].map((at) => sources[at].top(readouts[at], state.site, places[at].layer, places[at].column));
    const others = new Set(found[1 - side].map(([token]) => sources[1 - side].payload.vocabulary[token]));
    list.append(...found[side].map(([token, share]) => {
      const item = element("li", "lg-top"), alone = !others.has(sources[side].payload.vocabulary[token]);
      item.style.setProperty("--lg-share", `${(100 * share).toFixed(1)}%`);
      item.classList.toggle("lg-actual", token === sources[side].payload.actual[places[side].column]);
      item.append(element("span", "lg-top-token", sources[side].glyph(token)), element("span", "lg-top-share", brief(share)), element("span", "lg-top-move lg-new", alone ? `only ${"AB"[side]}` : ""));
      return item;
    }));
    const none = sources[side].none(state.site, places[side].layer), title = `${"AB"[side]} · ${sources[side].readoutTitle(readouts[side])}`;
    node.append(element("div", "lg-step-title", title), ...(none ? [element("div", "lg-step-sub", none)] : []), list);
    return node;
  }

  function draw(sources, readouts, state, places, view, same) {
    const at = (side) => `${places[side].layer === sources[side].model ? "the model’s own policy" : `layer ${places[side].layer}`} · position ${sources[side].position(places[side].column)}`;
    const said = same || at(0) === at(1) ? at(0) : `A: ${at(0)}; B: ${at(1)}`;
    write(headline, said[0].toUpperCase() + said.slice(1));
    write(mode, state.locked ? "locked" : "preview");
    mode.classList.toggle("lg-is-locked", state.locked);
    free.disabled = !state.locked;
    const words = sources.map((source, side) => element("bdi", "lg-word", source.glyph(source.payload.actual[places[side].column])));
    came.replaceChildren("Actual token ", words[0], ...(same ? [] : [" and ", words[1]]), ` · ${sources[0].siteTitle(state.site)}`);
    drawNumbers(sources, readouts, state, places, view, same);
    lists.replaceChildren(...(sources[0].k || sources[1].k ? [0, 1].map((side) => listOf(side, sources, readouts, state, places)) : []));
  }
  return { node: box, draw };
}
