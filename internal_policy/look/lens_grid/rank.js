// The drawing of a token's rank by layer, for the actual token and the pinned ones.

const PICTURE = { width: 380, height: 168, left: 50, right: 22, top: 10, bottom: 24 };
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];

function createRank(act) {
  const box = element("div", "lg-ranks"), title = element("div", "lg-title"), note = element("p", "lg-small");
  const svg = drawn("svg", { viewBox: `0 0 ${PICTURE.width} ${PICTURE.height}`, role: "img" });
  const axes = drawn("g"), cursor = drawn("line", { class: "lg-cursor", y1: PICTURE.top, y2: PICTURE.height - PICTURE.bottom });
  const curves = drawn("g"), dot = drawn("circle", { class: "lg-dot", r: 3.5 }), mark = drawn("circle", { class: "lg-mark", r: 4 });
  svg.append(axes, cursor, curves, dot, mark);
  box.append(title, svg, note);
  let source = null, x = null, y = null, titled = "";

  function scales() {
    const { model, payload } = source, gap = Math.max(1.5, 0.13 * model);
    const across = PICTURE.width - PICTURE.left - PICTURE.right, down = PICTURE.height - PICTURE.top - PICTURE.bottom;
    x = (layer) => PICTURE.left + ((layer === model ? model - 1 + gap : layer) / (model - 1 + gap)) * across;
    y = (rank) => PICTURE.top + (Math.log(rank) / Math.log(Math.max(payload.d_vocab, 10))) * down;
  }

  function drawAxes() {
    const { model, payload } = source, bottom = PICTURE.height - PICTURE.bottom;
    axes.replaceChildren();
    for (let rank = 1; rank <= payload.d_vocab; rank *= 10) {
      const label = drawn("text", { x: PICTURE.left - 7, y: y(rank) + 4, "text-anchor": "end" });
      label.textContent = rank.toLocaleString("en-US");
      axes.append(drawn("line", { class: "lg-rule", x1: PICTURE.left, x2: PICTURE.width - PICTURE.right, y1: y(rank), y2: y(rank) }), label);
    }
    const step = [1, 2, 5, 10, 20, 50, 100].find((each) => model / each <= 7) || 200;
    const ticks = Array.from({ length: model }, (_, layer) => layer).filter((layer) => layer === model - 1 || (layer % step === 0 && x(model - 1) - x(layer) > 24));
    for (const layer of [...ticks, model]) {
      const label = drawn("text", { x: x(layer), y: bottom + 17, "text-anchor": "middle" });
      label.textContent = layer === model ? "model" : String(layer);
      axes.append(drawn("line", { class: "lg-rule", x1: x(layer), x2: x(layer), y1: bottom, y2: bottom + 4 }), label);
    }
  }

  // A line through the known ranks, broken where one isn't known or layers weren't measured.
  function path(ranks) {
    const apart = ranks.slice(1).map(([layer], at) => layer - ranks[at][0]).sort((a, b) => a - b), usual = apart[apart.length >> 1];
    let said = "", last = NaN;
    for (const [layer, rank] of ranks) {
      const joined = layer !== source.model && layer - last <= usual;
      if (rank > 0) said += `${joined ? "L" : "M"}${x(layer).toFixed(1)} ${y(rank).toFixed(1)}${joined ? "" : "h0"}`;
      last = rank > 0 ? layer : NaN;
    }
    return said;
  }

  function curve(ranks, name, colour, dash) {
    const made = drawn("path", { class: name, d: path(ranks), "stroke-dasharray": dash });
    if (colour) made.style.stroke = colour;
    return made;
  }

  function drawTitle(column, pins) {
    const actual = element("span", "lg-chip", source.glyph(source.payload.actual[column]));
    const said = JSON.stringify([actual.textContent, pins]);
    if (said === titled) return;
    titled = said;
    const chips = pins.map((pin, at) => {
      const made = element("button", "lg-chip lg-pinned", visible(pin.text));
      made.type = "button";
      made.style.setProperty("--lg-pin", PINS[at]);
      made.setAttribute("aria-label", `Unpin ${visible(pin.text)}`);
      made.onclick = () => act.pin(pin.text);
      return made;
    });
    title.replaceChildren(element("span", "", "Rank by layer"), actual, ...chips);
  }

  function draw(next, state, pins) {
    if (next !== source) {
      source = next;
      scales();
      drawAxes();
    }
    const { readout, site, layer, column } = state, layers = source.layers(readout, site).filter((each) => !source.none(site, each)).reverse();
    const actual = layers.map((each) => [each, source.actualRank(readout, site, each, column)]);
    const known = pins.map((pin) => layers.map((each) => [each, pin.token < 0 ? 0 : source.rankOf(pin.token, readout, site, each, column)]));
    const end = (actual.find(([each]) => each === source.model) || [0, 0])[1];
    dot.style.display = end > 0 ? "" : "none";
    if (end > 0) for (const [name, value] of [["cx", x(source.model)], ["cy", y(end)]]) dot.setAttribute(name, value);
    curves.replaceChildren(curve(actual, "lg-curve"), ...known.map((ranks, at) => curve(ranks, "lg-curve lg-pin", PINS[at], DASHES[at])));
    cursor.setAttribute("x1", x(layer));
    cursor.setAttribute("x2", x(layer));
    const here = (actual.find(([each]) => each === layer) || [0, NaN])[1];
    mark.style.display = here > 0 ? "" : "none";
    if (here > 0) for (const [name, value] of [["cx", x(layer)], ["cy", y(here)]]) mark.setAttribute(name, value);
    drawTitle(column, pins);
    const ranks = actual.filter(([, rank]) => rank > 0), ends = [ranks[0], ranks[ranks.length - 1]];
    const said = ranks.length ? ends.map(([at, rank]) => `${rank.toLocaleString("en-US")} at ${at === source.model ? "the model" : `layer ${at}`}`).join(", ") : "not measured";
    svg.setAttribute("aria-label", `Rank of the actual token by layer: ${said}`);
    write(note, pins.length ? `A pinned token's rank is only known within the top ${source.k}. Its line breaks where the rank is lower.` : source.k ? "Click a token above to pin it here." : "");
  }

  svg.addEventListener("click", (event) => {
    if (!source) return;
    const at = ((event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * PICTURE.width;
    act.nearest(at, x);
  });
  return { node: box, draw };
}
