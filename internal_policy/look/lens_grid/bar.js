// The controls above the grid: measure, scale, site, readout and the search.

function field(label, control, named = control) {
  const made = element("div", "lg-field"), text = element("span", "lg-label", label);
  text.setAttribute("aria-hidden", "true");
  named.setAttribute("aria-label", label);
  made.append(text, control);
  return made;
}

function createBar(act) {
  const bar = element("div", "lg-bar");
  const measure = element("select"), site = element("select"), readout = element("select"), scale = element("select");
  const search = element("input", "lg-search"), status = element("span", "lg-found");
  const [previous, next] = [["‹", "Previous cell with this token"], ["›", "Next cell with this token"]].map(([text, said]) => {
    const button = element("button", "lg-button lg-step-button", text);
    button.type = "button";
    button.setAttribute("aria-label", said);
    return button;
  });
  search.type = "search";
  search.placeholder = "find a token";
  search.spellcheck = false;
  status.setAttribute("role", "status");
  const finder = element("span", "lg-finder");
  finder.append(search, previous, next, status);
  bar.append(field("Colour by", measure), field("Scale", scale), field("Site", site), field("Readout", readout), field("Find a token", finder, search));
  measure.onchange = () => act.choose({ measure: measure.value });
  site.onchange = () => act.choose({ site: site.value });
  readout.onchange = () => act.choose({ readout: readout.value });
  scale.onchange = () => act.choose({ fixed: scale.value === "fixed" });
  search.oninput = () => act.find(search.value);
  previous.onclick = () => act.hit(-1);
  next.onclick = () => act.hit(1);
  search.onkeydown = (event) => {
    if (event.key === "Enter") act.hit(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") act.find((search.value = ""));
    if (["Enter", "Escape"].includes(event.key)) event.preventDefault();
  };

  // Lists are only made anew if they changed, because that would close an open one.
  function fill(select, options, chosen) {
    const said = JSON.stringify(options);
    if (select.said !== said) select.replaceChildren(...options.map(({ value, text, off }) => {
      const option = element("option", "", text);
      option.value = value;
      option.disabled = Boolean(off);
      return option;
    }));
    select.said = said;
    select.value = chosen;
  }

  function draw(source, state) {
    const { payload } = source, here = source.measure(state.measure);
    const absent = (ro, name) => !act.canWant && !source.sent(ro, name) && !(name === "resid_pre" && source.sent(ro, "resid_post"));
    fill(measure, payload.measures.map(({ name, title }) => ({ value: name, text: title, off: !source.has(state.readout, state.site, name) })), state.measure);
    fill(site, payload.sites.filter((each) => each.name !== "final").map(({ name, title }) => ({ value: name, text: title, off: absent(state.readout, name) })), state.site);
    fill(readout, payload.readouts.map(({ name, title }) => ({ value: name, text: title, off: absent(name, state.site) })), state.readout);
    fill(scale, [{ value: "automatic", text: "automatic scale" }, { value: "fixed", text: "fixed scale", off: !here || !here.fixed }], state.fixed && here && here.fixed ? "fixed" : "automatic");
    search.parentNode.parentNode.hidden = !source.k;
  }

  function drawFound(found, typed) {
    if (search.value !== typed) search.value = typed;
    previous.disabled = next.disabled = !found || !found.cells.length;
    write(status, !found ? "" : found.cells.length ? `${counted(found.cells.length, "cell")}, ${counted(found.tokens, "token")}` : "no cell has it");
  }
  return { node: bar, draw, drawFound };
}
