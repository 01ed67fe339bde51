// The lens grid: mount it in an empty element, give it new data, ask for its state.
//
// const grid = mountLensGrid(root, data, host); grid.update(data); grid.state();
// One grid is `lensGrid`; two linked ones, with their difference, are `mountPair` in pair.js.

function mountLensGrid(root, data, host) {
  if (root.lensGrid) {
    Object.assign(root.lensGrid.host, host);
    root.lensGrid.update(data);
    return root.lensGrid;
  }
  const made = data.grids.length > 1 ? mountPair(root, data, { ...host }) : lensGrid(root, data, { ...host });
  root.lensGrid = made;
  return made;
}

// One grid. A host may have `keep(state)`, called when Enter keeps a cell, `want(plane)`, called for a readout and
// site that weren't sent, and `read(readout)`, called when another readout is chosen.
function lensGrid(root, data, host) {
  let source = null, view = null, found = null, typed = "", pins = [], pending = null, turn = 0, given = {}, kept = "";
  const state = { readout: "", site: "", measure: "", fixed: false, layer: 0, column: 0, locked: false };
  const act = {
    hover, lock, move, keep, free, pin, find, hit, choose, describe, nearest,
    narrow: () => root.clientWidth < NARROW,
    canKeep: Boolean(host.keep),
    canWant: Boolean(host.want),
  };
  const box = element("div", "lg"), note = element("p", "lg-note"), strip = element("div", "lg-text"), legend = element("div", "lg-legend");
  const main = element("div", "lg-main"), live = element("div", "lg-live"), left = element("div", "lg-left");
  const bar = createBar(act), table = createTable(act), panel = createPanel(act);
  let text = null;
  live.setAttribute("aria-live", "polite");
  strip.setAttribute("role", "group");
  note.setAttribute("role", "note");
  left.append(legend, table.node);
  main.append(left, panel.node);
  box.append(bar.node, note, strip, main, live);
  new ResizeObserver(() => box.classList.toggle("lg-narrow", act.narrow())).observe(root);
  box.classList.toggle("lg-narrow", act.narrow());
  const peek = ([entry]) => box.classList.toggle("lg-peek", entry.intersectionRatio < 0.5);
  new IntersectionObserver(peek, { rootMargin: "0px 0px -42% 0px", threshold: [0, 0.5] }).observe(table.node);
  box.classList.toggle("lg-app", root.getRootNode() !== document);
  root.replaceChildren(box);
  listenToKeys(table.node, act);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view && repaint());

  // The state that a link keeps.
  function link() {
    const { layer, column, site, readout, measure } = state;
    return { layer, position: source.position(column), site, readout, measure };
  }

  function adopt(chosen, next) {
    const { payload } = next;
    const sent = (name) => payload.planes[name];
    state.readout = [chosen.readout, "norm", ...payload.readouts.map((each) => each.name)].find((name) => name && sent(name));
    state.site = next.layers(state.readout, chosen.site).some((layer) => layer < next.model) ? chosen.site : "resid_post";
    state.measure = next.measure(chosen.measure) ? chosen.measure : payload.measures[0].name;
    const rows = next.layers(state.readout, state.site), column = (chosen.position ?? null) === null ? -1 : next.columnOf(chosen.position);
    const known = column >= 0;
    state.layer = nearestOf(rows, chosen.layer ?? rows[rows.length >> 1]);
    state.column = known ? column : 0;
    state.locked = known && rows.includes(chosen.layer);
  }

  // Keep the state where the new payload still has it.
  function carry(next) {
    const same = source.payload.scan === next.payload.scan && source.payload.rollout === next.payload.rollout;
    if (pending && next.sent(pending.readout, pending.site)) Object.assign(state, pending);
    if (!next.payload.planes[state.readout]) state.readout = Object.keys(next.payload.planes)[0];
    if (!next.layers(state.readout, state.site).length) state.site = "resid_post";
    if (!next.measure(state.measure)) state.measure = next.payload.measures[0].name;
    const column = next.columnOf(source.position(state.column));
    const stays = same && column >= 0;
    state.column = stays ? column : 0;
    state.locked = state.locked && stays;
    state.layer = nearestOf(next.layers(state.readout, state.site), state.layer);
    return stays;
  }

  // Take only what the host has changed, because the rest may have been chosen here.
  function change(news, next) {
    const { readout, site, measure, layer, column, locked } = state;
    adopt({ readout, site, measure, layer, position: next.position(column), ...news }, next);
    if (!("layer" in news || "position" in news)) state.locked = locked;
  }

  async function update(next) {
    try {
      await show(next);
    } catch (error) {
      root.replaceChildren(element("p", "lg lg-note", `The lens grid can't be drawn. ${error.message}`));
      throw error;
    }
  }

  async function show(next) {
    const mine = ++turn, payload = next.grids[0], opened = openPayload(payload, source);
    const news = Object.entries(next.chosen).filter(([name, value]) => given[name] !== value);
    const asked = news.length > 0 && !sameLink(next.chosen, kept);
    given = next.chosen;
    const stays = source && carry(opened);
    if (!source) adopt(next.chosen, opened);
    else if (asked) change(Object.fromEntries(news), opened);
    pending = null;
    view = null; // until the next drawing, nothing can be pointed at
    const move = !source || asked || !stays;
    await opened.open(state.readout, state.site);
    if (mine !== turn) return;
    const texts = (each) => JSON.stringify([each.payload.prompt, each.payload.tokens]);
    if (!text || texts(source) !== texts(opened)) text = textStrip(strip, opened, act);
    source = opened;
    pins = pins.map(({ text: word }) => ({ text: word, token: payload.vocabulary.indexOf(word) }));
    search();
    draw();
    if (move) table.reveal(state.layer, state.column, true);
    root.dataset.ready = String(turn);
  }

  function makeView() {
    const { readout, site } = state, measure = source.measure(state.measure), rows = source.layers(readout, site);
    const value = source.reader(readout, site, state.measure), layers = rows.filter((layer) => layer < source.model);
    const lines = new Map(rows.map((layer) => [layer, source.line(readout, site, layer)]));
    const values = layers.flatMap((layer) => Array.from({ length: source.columns }, (_, column) => value(layer, column))).filter(Number.isFinite);
    const scale = scaleOf(measure, values, state.fixed), full = palette(measure);
    return { measure, rows, value, lines, values, scale, full, layers };
  }

  function draw() {
    view = makeView();
    bar.draw(source, state);
    drawNote();
    drawWords();
    repaint();
  }

  // What the table draws in a cell.
  function look(layer, column) {
    const line = view.lines.get(layer), at = line ? line.start + column : 0;
    const token = line && line.fields.topk_ids ? line.fields.topk_ids[at * source.k] : NO_TOKEN;
    const number = view.value(layer, column), step = view.scale.step(number);
    const hit = found !== null && found.keys.has(layer * source.columns + column);
    const paint = step < 0 ? { colour: "", ink: "" } : (found && !hit ? view.faded : view.full)[step];
    const said = token !== NO_TOKEN ? source.glyph(token) : source.k || !Number.isFinite(number) ? "" : amount(number, { ...view.measure, unit: "" });
    return { text: said, colour: paint.colour, ink: paint.ink, actual: token === source.payload.actual[column], hit };
  }

  function repaint() {
    if (found) view.faded = palette(view.measure, 0.72, channels(getComputedStyle(box).backgroundColor));
    const { model, columns, payload } = source;
    const came = (column) => source.glyph(payload.actual[column]);
    const rows = view.rows.filter((layer) => layer < model);
    table.node.setAttribute("aria-label", `Top token of every layer at every position, coloured by ${view.measure.title.toLowerCase()}`);
    table.draw({ rows, model, columns, position: source.position, hasModel: view.rows.includes(model), look, came });
    point();
  }

  // The legend, and the colours of the text above the grid.
  function drawWords() {
    const own = (name) => source.reader(state.readout, "resid_post", name);
    const numbers = (name) => Array.from({ length: source.columns }, (_, column) => own(name)(source.model, column));
    const shown = numbers(state.measure).some(Number.isFinite) ? state.measure : "entropy", measure = source.measure(shown), coloured = numbers(shown);
    const scale = shown === state.measure && view.values.length ? view.scale : measure && scaleOf(measure, coloured.filter(Number.isFinite), false);
    if (scale) text.paint((column) => scale.step(coloured[column]), palette(measure));
    strip.setAttribute("aria-label", `Prompt and response${measure ? `, coloured by the model's own ${measure.title.toLowerCase()}` : ""}`);
    const where = `${view.measure.title} · ${source.siteTitle(state.site)}, ${source.readoutTitle(state.readout)}`;
    const other = measure && shown !== state.measure ? ` The text above shows the model's own ${measure.title.toLowerCase()}.` : "";
    if (view.values.length) drawLegend(legend, view.scale, where, `${source.k ? "Bold: the top token is the actual one." : "Cells show numbers, because the scan kept no top tokens."}${other}`);
    else legend.replaceChildren(element("span", "lg-what", where), element("span", "lg-why", `${source.has(state.readout, state.site, state.measure) ? "Nothing measured yet." : "Not measured at this site with this readout."}${other}`));
  }

  // What is wrong with this readout, and the way to a better one.
  function drawNote() {
    const { readouts } = source.payload, here = readouts.find((each) => each.name === state.readout);
    const better = state.readout !== "norm" && readouts.find((each) => each.name === "norm");
    note.hidden = !here || !here.note;
    if (note.hidden) return;
    note.replaceChildren(element("span", "", here.note));
    if (!better || !(act.canWant || source.sent("norm", state.site))) return;
    const button = element("button", "lg-button", `Read ${better.title}`);
    button.type = "button";
    button.onclick = () => choose({ readout: "norm" });
    note.append(button);
  }

  function point(reveal = false) {
    table.point(state);
    text.point(state.column, reveal);
    panel.draw(source, state, pins);
  }

  function hover(layer, column) {
    if (state.locked || !view) return;
    state.layer = layer ?? state.layer;
    state.column = column ?? state.column;
    point();
  }

  function lock(layer, column) {
    if (!view) return;
    const same = state.locked && (layer ?? state.layer) === state.layer && (column ?? state.column) === state.column;
    if (same) return free();
    go(layer ?? state.layer, column ?? state.column);
    live.textContent = describe(state.layer, state.column);
  }

  // Lock a cell and bring it into sight.
  function go(layer, column) {
    Object.assign(state, { layer, column, locked: true });
    table.reveal(layer, column);
    point(true);
  }

  function move(down, across) {
    if (!view) return;
    const rows = view.rows, at = clamp(rows.indexOf(state.layer) + down, 0, rows.length - 1);
    go(rows[at], clamp(state.column + across, 0, source.columns - 1));
    table.focus();
  }

  function free() {
    if (!view) return;
    state.locked = false;
    point();
    live.textContent = "Unlocked. Hovering previews cells.";
  }

  function keep() {
    if (!view) return;
    go(state.layer, state.column);
    if (!host.keep) return;
    kept = link();
    host.keep(kept);
    live.textContent = "The address now has this cell.";
  }

  function pin(word) {
    if (!view) return;
    const at = pins.findIndex((each) => each.text === word);
    if (at >= 0) pins.splice(at, 1);
    else pins = [...pins, { text: word, token: source.payload.vocabulary.indexOf(word) }].slice(-PINS.length);
    panel.draw(source, state, pins);
    live.textContent = at >= 0 ? `Unpinned ${visible(word)}.` : `Pinned ${visible(word)}.`;
  }

  function search() {
    found = findCells(source, state.readout, state.site, typed);
    bar.drawFound(found, typed);
  }

  function find(word) {
    typed = word;
    if (!view) return;
    search();
    repaint();
  }

  function hit(step) {
    if (!view || !found || !found.cells.length) return;
    const { layer, column } = neighbour(found, state, step);
    go(layer, column);
    live.textContent = describe(layer, column);
  }

  async function choose(changes) {
    if (!view) return;
    const wanted = { readout: state.readout, site: state.site, ...changes };
    const there = source.sent(wanted.readout, wanted.site) || (wanted.site === "resid_pre" && source.sent(wanted.readout, "resid_post"));
    if (!there) {
      pending = { readout: wanted.readout, site: wanted.site };
      host.want(pending);
      return;
    }
    const mine = ++turn;
    Object.assign(state, changes);
    await source.open(state.readout, state.site);
    if (mine !== turn) return;
    state.layer = nearestOf(source.layers(state.readout, state.site), state.layer);
    search();
    draw();
    root.dataset.ready = String(turn);
    if (changes.readout && host.read) host.read(changes.readout);
  }

  function nearest(at, x) {
    const distance = (layer) => Math.abs(x(layer) - at);
    lock(view.rows.reduce((best, layer) => (distance(layer) < distance(best) ? layer : best)), null);
  }

  // A cell in words, for screen readers.
  function describe(layer, column) {
    const { readout, site } = state, best = source.top(readout, site, layer, column)[0];
    const rank = source.actualRank(readout, site, layer, column), number = view.value(layer, column);
    const none = source.none(site, layer), said = none ? [none] : [
      best ? `top token ${source.glyph(best[0])}, probability ${percent(best[1])}` : "",
      state.measure !== "probability" && state.measure !== "rank" ? `${view.measure.title.toLowerCase()} ${amount(number, view.measure)}` : "",
      `actual token ${source.glyph(source.payload.actual[column])}${rank > 0 ? `, rank ${rank.toLocaleString("en-US")}` : ""}`,
    ];
    return `${layer === source.model ? "the model's own policy" : `layer ${layer}`}, position ${source.position(column)}: ${said.filter(Boolean).join("; ")}`;
  }

  update(data);
  return { host, update, state: () => source && ({ ...link(), locked: state.locked, pins: pins.map((each) => each.text), find: typed, fixed: state.fixed }) };
}

function nearestOf(rows, wanted) {
  return rows.reduce((best, row) => (Math.abs(row - wanted) < Math.abs(best - wanted) ? row : best));
}

function sameLink(chosen, kept) {
  return Boolean(kept) && Object.entries(kept).every(([name, value]) => chosen[name] === value);
}
