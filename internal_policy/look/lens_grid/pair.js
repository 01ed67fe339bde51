// Two linked grids: the same cell of two responses A and B, and below them how B differs from A.

const ISOLATED = ["\u2068", "\u2069"]; // keep a token that runs from right to left from turning the arrow around
const WIDER = 1.5; // columns of differences, which hold two tokens

// The state and the drawing of two grids. `data.why` says why nothing is subtracted; the tokens then may differ.
function mountPair(root, data, host) {
  const state = { site: "resid_post", measure: "probability", fixed: false, layer: 0, columns: [0, 0], locked: false };
  let sources = [], readouts = [], same = true, view = null, typed = "", found = null, turn = 0, leader = null, given = "";
  const box = element("div", "lg lg-pair"), why = element("p", "lg-note"), texts = element("div", "lg-pair-texts"), live = element("div", "lg-live");
  const shared = { choose, find, hit, canWant: Boolean(host.want), canKeep: Boolean(host.keep), narrow: () => root.clientWidth < NARROW };
  const bar = createBar(shared), panel = createPairPanel({ ...shared, keep, free });
  const parts = ["A", "B", "B minus A"].map((name, at) => makePart(name, at));
  const grids = element("div", "lg-pair-grids");
  live.setAttribute("aria-live", "polite");
  grids.append(...parts.map((part) => part.node), panel.node);
  bar.node.querySelector("[aria-label=Readout]").closest(".lg-field").hidden = true; // each grid has one of its own
  box.append(bar.node, why, texts, grids, live);
  root.replaceChildren(box);
  const fit = () => box.classList.toggle("lg-narrow", shared.narrow());
  fit();
  new ResizeObserver(fit).observe(root);

  // One of the three tables, with its heading and legend. The third has the differences.
  function makePart(name, at) {
    const node = element("section", "lg-pair-one"), heading = element("h3", "lg-pair-name"), legend = element("div", "lg-legend"), strip = element("div", "lg-text"), note = element("p", "lg-note");
    const act = {
      ...shared, keep, free,
      hover: (layer, column) => hover(at, layer, column),
      lock: (layer, column) => lock(at, layer, column),
      move: (down, across) => move(at, down, across),
      describe: (layer, column) => describe(at, layer, column),
    };
    const table = createTable(act, at === 2 ? WIDER : 1);
    node.append(heading, note, strip, legend, table.node);
    listenToKeys(table.node, act);
    for (const event of ["pointerenter", "pointerdown", "focusin"]) table.node.addEventListener(event, () => (leader = at), { passive: true });
    table.node.addEventListener("scroll", () => follow(at), { passive: true });
    return { name, node, heading, note, legend, strip, table, act, text: null };
  }

  // Scroll the other tables to the same layers, and to the same positions if the tokens are the same.
  function follow(at) {
    if (leader !== at) return;
    const lead = parts[at].table, from = lead.node, share = (node) => node.scrollHeight - node.clientHeight;
    parts.forEach(({ table }, other) => {
      const { node } = table;
      if (other === at || !node.clientWidth) return;
      node.scrollTop = share(from) > 0 ? (from.scrollTop / share(from)) * share(node) : 0;
      if (same) node.scrollLeft = (from.scrollLeft / lead.width()) * table.width();
    });
  }

  // The layer of one side that belongs to a layer of the other: the same, or the one at the same share of the depth.
  function layerOn(side, layer, from) {
    const here = sources[side].model, there = sources[from].model;
    if (layer === there) return here;
    const wanted = here === there ? layer : Math.round((layer / Math.max(1, there - 1)) * (here - 1));
    return nearestOf(view.rows[side], wanted);
  }

  // The side whose cells a table shows; differences are addressed as A's.
  const sideOf = (at) => (at === 1 ? 1 : 0);

  async function update(next) {
    const mine = ++turn, opened = next.grids.map((payload, at) => openPayload(payload, sources[at]));
    const fresh = !sources.length || opened.some((each, at) => each.payload.scan !== sources[at].payload.scan || each.payload.rollout !== sources[at].payload.rollout);
    const asked = JSON.stringify(next.chosen) !== given, chosen = next.chosen;
    given = JSON.stringify(chosen);
    const read = opened.map((each) => Object.keys(each.payload.planes)[0]);
    const site = (asked && chosen.site) || state.site, both = (name) => opened.every((each, at) => each.layers(read[at], name).some((layer) => layer < each.model));
    const wanted = both(site) ? site : both("resid_post") ? "resid_post" : opened[0].payload.sites.map((each) => each.name).find(both);
    await Promise.all(opened.map((each, at) => each.open(read[at], wanted)));
    if (mine !== turn) return;
    [sources, readouts, state.site] = [opened, read, wanted];
    same = !next.why && sameTexts(sources[0].payload.tokens, sources[1].payload.tokens) && sources[0].model === sources[1].model && sources[0].payload.first === sources[1].payload.first && sources[0].payload.every === sources[1].payload.every;
    const measures = sources[0].payload.measures.filter((each) => sources[1].measure(each.name));
    const known = (name) => measures.some((each) => each.name === name);
    state.measure = (asked && known(chosen.measure) && chosen.measure) || (known(state.measure) ? state.measure : measures[0].name);
    view = { rows: sources.map((each, at) => each.layers(readouts[at], state.site)), measures };
    if (fresh || asked) place(chosen, fresh);
    else state.layer = nearestOf(view.rows[0], state.layer);
    drawTexts(next);
    search();
    draw();
    if (fresh || asked) reveal(true);
    root.dataset.ready = String(turn);
  }

  function place(chosen, fresh) {
    const rows = view.rows[0], column = Number.isInteger(chosen.position) ? sources[0].columnOf(chosen.position) : fresh ? 0 : state.columns[0];
    const known = column >= 0 && column < sources[0].columns;
    state.layer = nearestOf(rows, chosen.layer ?? rows[rows.length >> 1]);
    state.columns = [known ? column : 0, same && known ? column : 0];
    state.locked = Number.isInteger(chosen.position) && known && rows.includes(chosen.layer);
  }

  function drawTexts({ labels = [], why: reason }) {
    const { payload: a } = sources[0], { payload: b } = sources[1];
    const common = same && sameTexts(a.prompt, b.prompt);
    why.hidden = same;
    box.classList.toggle("lg-pair-apart", !same);
    write(why, same ? "" : reason || "A and B have different tokens, so only their layers are linked and nothing is subtracted.");
    parts.forEach((part, at) => {
      write(part.heading, at < 2 && labels[at] ? `${part.name} · ${visible(labels[at]).replaceAll("␣", " ")}` : part.name);
      write(part.note, at < 2 ? sources[at].payload.readouts.find((each) => each.name === readouts[at]).note : "");
      part.note.hidden = !part.note.textContent;
      part.node.hidden = at === 2 && !same;
      part.strip.hidden = at === 2 || common;
      if (!part.strip.hidden) part.text = textStrip(part.strip, sources[at], part.act);
    });
    texts.hidden = !common;
    if (!common) return;
    texts.replaceChildren(element("div", "lg-text"));
    parts[0].text = textStrip(texts.firstChild, sources[0], parts[0].act);
    parts[1].text = null;
  }

  // Everything that a repaint reads: numbers, scales and colours of both grids, and of their difference.
  function draw() {
    const measure = sources[0].measure(state.measure), change = differenceOf(measure);
    const rows = sources.map((each, at) => each.layers(readouts[at], state.site));
    const values = sources.map((each, at) => each.reader(readouts[at], state.site, state.measure));
    const numbers = sources.map((each, at) => inCells(rows[at], each, values[at]));
    const delta = (layer, column) => change.of(values[0](layer, column), values[1](layer, column));
    const shared = rows[0].filter((layer) => rows[1].includes(layer)), deltas = same ? inCells(shared, sources[0], delta) : [];
    const scale = scaleOf(measure, numbers.flat(), state.fixed), apart = scaleOf(change, deltas, false);
    Object.assign(view, { measure, change, rows, values, delta, shared, scale, apart, colours: palette(measure), contrast: palette(change), numbers, deltas });
    const sites = sources[0].payload.sites.filter((each) => sources[1].payload.sites.some((other) => other.name === each.name));
    bar.draw({ ...sources[0], payload: { ...sources[0].payload, sites, measures: view.measures } }, { ...state, readout: readouts[0] });
    drawLegends();
    repaint();
  }

  function inCells(rows, source, value) {
    const layers = rows.filter((layer) => layer < source.model);
    return layers.flatMap((layer) => Array.from({ length: source.columns }, (_, column) => value(layer, column))).filter(Number.isFinite);
  }

  function drawLegends() {
    const where = `${view.measure.title} · ${sources[0].siteTitle(state.site)}`;
    for (const at of [0, 1]) {
      const { legend } = parts[at];
      if (view.numbers[at].length) drawLegend(legend, view.scale, where, sources[at].k ? "Bold: the top token is the actual one." : "Cells show numbers, because the scan kept no top tokens.");
      else legend.replaceChildren(element("span", "lg-what", where), element("span", "lg-why", "Not measured at this site with this readout."));
    }
    if (!same) return;
    const differing = view.shared.reduce((sum, layer) => sum + columnsOf(sources[0]).filter((column) => topsDiffer(layer, column)).length, 0);
    const said = sources[0].k && sources[1].k ? `A→B: the top tokens differ, in ${counted(differing, "cell")}.` : "";
    if (view.deltas.length) drawLegend(parts[2].legend, view.apart, view.change.title, said);
    else parts[2].legend.replaceChildren(element("span", "lg-why", `Nothing to subtract at this site. ${said}`));
  }

  const columnsOf = (source) => Array.from({ length: source.columns }, (_, column) => column);
  const best = (side, layer, column) => sources[side].top(readouts[side], state.site, layer, column)[0];

  function topsDiffer(layer, column) {
    const [a, b] = [0, 1].map((side) => best(side, layer, column));
    return Boolean(a && b) && sources[0].payload.vocabulary[a[0]] !== sources[1].payload.vocabulary[b[0]];
  }

  // What a table draws in a cell of A or B.
  function lookOf(side) {
    return (layer, column) => {
      const source = sources[side], top = best(side, layer, column), number = view.values[side](layer, column), step = view.scale.step(number);
      const paint = step < 0 ? { colour: "", ink: "" } : view.colours[step];
      const said = top ? source.glyph(top[0]) : source.k || !Number.isFinite(number) ? "" : amount(number, { ...view.measure, unit: "" });
      return { text: said, colour: paint.colour, ink: paint.ink, actual: Boolean(top) && top[0] === source.payload.actual[column], hit: isHit(side, layer, column) };
    };
  }

  // What the third table draws: the common top token, or A's and B's where they differ.
  function lookApart(layer, column) {
    const number = view.delta(layer, column), step = view.apart.step(number), paint = step < 0 ? { colour: "", ink: "" } : view.contrast[step];
    const [a, b] = [0, 1].map((side) => best(side, layer, column)), differs = topsDiffer(layer, column);
    const word = (side, top) => ISOLATED.join(sources[side].glyph(top[0]));
    const said = differs ? `${word(0, a)}→${word(1, b)}` : a && b ? sources[0].glyph(a[0]) : Number.isFinite(number) ? amount(number, { ...view.change, unit: "" }) : "";
    return { text: said, colour: paint.colour, ink: paint.ink, actual: false, hit: isHit(0, layer, column) || isHit(1, layer, column), name: differs ? "lg-differs" : "" };
  }

  function isHit(side, layer, column) {
    return found !== null && found[side].keys.has(layer * sources[side].columns + column);
  }

  function repaint() {
    parts.forEach((part, at) => {
      if (part.node.hidden) return;
      const side = sideOf(at), source = sources[side], rows = at === 2 ? view.shared : view.rows[side];
      const what = at === 2 ? `B minus A: ${view.measure.title.toLowerCase()}` : `${part.name}: top token of every layer at every position, coloured by ${view.measure.title.toLowerCase()}`;
      part.table.node.setAttribute("aria-label", what);
      const model = source.model, came = (column) => source.glyph(source.payload.actual[column]);
      part.table.draw({ rows: rows.filter((layer) => layer < model), model, columns: source.columns, position: source.position, hasModel: rows.includes(model), look: at === 2 ? lookApart : lookOf(side), came });
    });
    paintTexts();
    point();
  }

  // The response's tokens: coloured by the mean difference over layers, or if nothing is subtracted, by the model's own.
  function paintTexts() {
    if (same && !texts.hidden) {
      const layers = view.shared.filter((layer) => layer < sources[0].model);
      const mean = columnsOf(sources[0]).map((column) => {
        const numbers = layers.map((layer) => view.delta(layer, column)).filter(Number.isFinite);
        return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
      });
      const scale = scaleOf(view.change, mean.filter(Number.isFinite), false);
      parts[0].text.paint((column) => scale.step(mean[column]), view.contrast);
      texts.firstChild.setAttribute("aria-label", `Prompt and response, coloured by ${view.change.title.toLowerCase()}, mean over layers`);
      return;
    }
    for (const side of [0, 1]) {
      const own = sources[side].reader(readouts[side], "resid_post", state.measure);
      parts[side].text.paint((column) => view.scale.step(own(sources[side].model, column)), view.colours);
    }
  }

  const placeOn = (side) => ({ layer: layerOn(side, state.layer, 0), column: state.columns[side], locked: state.locked });

  function point(reveals = false) {
    parts.forEach((part, at) => {
      if (part.node.hidden) return;
      const place = placeOn(sideOf(at));
      part.table.point(place);
      if (part.text) part.text.point(place.column, reveals);
    });
    panel.draw(sources, readouts, state, [0, 1].map(placeOn), view, same);
  }

  function reveal(middle = false) {
    parts.forEach((part, at) => {
      const place = placeOn(sideOf(at));
      if (!part.node.hidden) part.table.reveal(place.layer, place.column, middle);
    });
  }

  // Choose a cell, and with it those of the others.
  function set(at, layer, column) {
    const side = sideOf(at);
    if (layer !== null && layer !== undefined) state.layer = side ? layerOn(0, layer, 1) : layer;
    if (column === null || column === undefined) return;
    state.columns[side] = column;
    if (same) state.columns[1 - side] = column;
  }

  function link() {
    const { layer, site, measure } = state;
    return { layer, position: sources[0].position(state.columns[0]), site, readout: readouts[0], measure };
  }

  function hover(at, layer, column) {
    if (state.locked || !view) return;
    set(at, layer, column);
    point();
  }

  function lock(at, layer, column) {
    const here = placeOn(sideOf(at));
    if (state.locked && (layer ?? here.layer) === here.layer && (column ?? here.column) === here.column) return free();
    go(at, layer, column);
    live.textContent = describe(at, placeOn(sideOf(at)).layer, state.columns[sideOf(at)]);
  }

  function go(at, layer, column) {
    set(at, layer, column);
    state.locked = true;
    leader = at;
    reveal();
    point(true);
  }

  function move(at, down, across) {
    const side = sideOf(at), rows = at === 2 ? view.shared : view.rows[side], here = placeOn(side);
    go(at, rows[clamp(rows.indexOf(here.layer) + down, 0, rows.length - 1)], clamp(here.column + across, 0, sources[side].columns - 1));
    parts[at].table.focus();
  }

  function free() {
    state.locked = false;
    point();
    live.textContent = "Unlocked. Hovering previews cells.";
  }

  function keep() {
    if (!host.keep) return;
    state.locked = true;
    point();
    host.keep(link());
    live.textContent = "The address now has this cell.";
  }

  function search() {
    const each = sources.map((source, at) => findCells(source, readouts[at], state.site, typed));
    found = each[0] ? each : null;
    const cells = found && found.flatMap((one) => one.cells);
    bar.drawFound(found && { cells, tokens: Math.max(...found.map((one) => one.tokens)) }, typed);
  }

  function find(word) {
    typed = word;
    search();
    repaint();
  }

  // Go to the next found cell of A, or of B if only that has some.
  function hit(step) {
    const side = found && (found[0].cells.length ? 0 : 1);
    if (found === null || !found[side].cells.length) return;
    const { layer, column } = neighbour(found[side], placeOn(side), step);
    go(side, layer, column);
  }

  async function choose(changes) {
    const site = changes.site || state.site;
    const there = sources.every((source, at) => source.sent(readouts[at], site) || (site === "resid_pre" && source.sent(readouts[at], "resid_post")));
    if (!there) {
      state.site = site;
      host.want({ readout: readouts[0], site });
      return;
    }
    const mine = ++turn;
    await Promise.all(sources.map((source, at) => source.open(readouts[at], site)));
    if (mine !== turn) return;
    Object.assign(state, changes);
    view.rows = sources.map((source, at) => source.layers(readouts[at], state.site));
    state.layer = nearestOf(view.rows[0], state.layer);
    search();
    draw();
    root.dataset.ready = String(turn);
  }

  // A cell in words, for screen readers.
  function describe(at, layer, column) {
    const side = sideOf(at), source = sources[side], tops = [0, 1].map((each) => best(each, layer, column));
    const number = at === 2 ? view.delta(layer, column) : view.values[side](layer, column);
    const what = at === 2 ? `B minus A: ${amount(number, view.change)}` : `${view.measure.title.toLowerCase()} ${amount(number, view.measure)}`;
    const words = at === 2 ? tops.map((top, each) => top && sources[each].glyph(top[0])) : [tops[side] && source.glyph(tops[side][0])];
    const top = words.every(Boolean) ? `top token ${[...new Set(words)].join(" becomes ")}` : "";
    const none = source.none(state.site, layer), said = none ? [none] : [top, what];
    const place = `${layer === source.model ? "the model's own policy" : `layer ${layer}`}, position ${source.position(column)}`;
    return `${place}: ${said.filter(Boolean).join("; ")}`;
  }

  update(data);
  return { host, update, state: () => ({ ...link(), locked: state.locked, columns: state.columns, same, find: typed }) };
}
