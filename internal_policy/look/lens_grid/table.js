// The table of layers x positions with the top token in each cell. Only the cells in sight are in the document.

const CHUNK = { rows: 5, columns: 4 }; // drawn beyond what is visible, on every side, and the step of moving on
const SIZES = { wide: { row: 21, column: 66, gutter: 58 }, narrow: { row: 26, column: 60, gutter: 54 } };
const WIDEST = 128;
const NARROW = 640;

// `wider` columns have room for two tokens.
function createTable(act, wider = 1) {
  const scroller = element("div", "lg-scroll"), canvas = element("div", "lg-canvas"), body = element("div", "lg-body");
  scroller.setAttribute("role", "grid");
  scroller.setAttribute("aria-readonly", "true");
  body.setAttribute("role", "rowgroup");
  scroller.append(canvas);
  let view = null, sizes = SIZES.wide, width = 0, from = { row: 0, column: 0 }, count = { rows: 0, columns: 0 };
  let head = null, model = null, lines = [], now = null, place = null, lit = [], fitted = "";

  function makeRow(name, role, cells) {
    const row = element("div", `lg-row ${name}`);
    row.setAttribute("role", "row");
    const first = element("div", "lg-side");
    first.setAttribute("role", name === "lg-heads" ? "columnheader" : "rowheader");
    const skip = element("div", "lg-skip");
    skip.setAttribute("role", "presentation");
    row.append(first, skip);
    row.cells = Array.from({ length: cells }, () => {
      const cell = element("div", name === "lg-heads" ? "lg-head" : "lg-cell");
      cell.setAttribute("role", role);
      if (name === "lg-heads") cell.append(element("span", "lg-at"), element("span", "lg-came"));
      else cell.append("");
      return cell;
    });
    row.append(...row.cells);
    row.side = first;
    return row;
  }

  // The slots for the cells in sight; they are made anew only if the table's size changes.
  function build() {
    const { rows, columns } = view;
    const narrow = act.narrow();
    sizes = narrow ? SIZES.narrow : SIZES.wide;
    const room = (scroller.clientWidth || 800) - sizes.gutter;
    width = Math.max(sizes.column * wider, Math.min(WIDEST * wider, Math.floor(room / columns)));
    const deep = scroller.clientHeight || 700;
    fitted = `${scroller.clientWidth} ${deep}`;
    const slots = {
      columns: Math.min(columns, Math.ceil(room / width) + 2 * CHUNK.columns),
      rows: Math.min(rows.length, Math.ceil(deep / sizes.row) + 2 * CHUNK.rows),
    };
    for (const [name, value] of [["--lg-w", width], ["--lg-h", sizes.row], ["--lg-gutter", sizes.gutter]]) canvas.style.setProperty(name, `${value}px`);
    canvas.style.width = `${sizes.gutter + columns * width}px`;
    scroller.setAttribute("aria-rowcount", rows.length + (view.hasModel ? 2 : 1));
    scroller.setAttribute("aria-colcount", columns + 1);
    if (head && slots.columns === count.columns && slots.rows === count.rows && Boolean(model) === view.hasModel) return;
    count = slots;
    head = makeRow("lg-heads", "columnheader", count.columns);
    head.side.textContent = "layer";
    model = view.hasModel ? makeRow("lg-model", "gridcell", count.columns) : null;
    lines = Array.from({ length: count.rows }, () => makeRow("lg-line", "gridcell", count.columns));
    body.replaceChildren(...lines);
    canvas.replaceChildren(head, ...(model ? [model] : []), body);
    now = null;
    lit = [];
  }

  function first(offset, size, slots, total, step) {
    const wanted = Math.floor(offset / size / step) * step - step;
    return Math.max(0, Math.min(total - slots, wanted));
  }

  function settle() {
    from = {
      row: first(scroller.scrollTop, sizes.row, count.rows, view.rows.length, CHUNK.rows),
      column: first(scroller.scrollLeft, width, count.columns, view.columns, CHUNK.columns),
    };
    canvas.style.setProperty("--lg-before", `${from.column * width}px`);
    body.style.height = `${view.rows.length * sizes.row}px`;
    body.style.paddingTop = `${from.row * sizes.row}px`;
  }

  function fillHead(slots) {
    head.setAttribute("aria-rowindex", 1);
    head.side.setAttribute("aria-colindex", 1);
    slots.forEach((slot) => {
      const cell = head.cells[slot], column = from.column + slot;
      cell.column = column;
      cell.setAttribute("aria-colindex", column + 2);
      write(cell.firstChild, String(view.position(column)));
      write(cell.lastChild, view.came(column));
    });
  }

  function nameRow(row, layer, index) {
    row.layer = layer;
    row.setAttribute("aria-rowindex", index);
    write(row.side, layer === view.model ? "model" : String(layer));
    row.side.setAttribute("aria-colindex", 1);
    row.side.setAttribute("aria-label", layer === view.model ? "the model's own policy" : `layer ${layer}`);
  }

  function fillRow(row, slots) {
    const { layer } = row;
    slots.forEach((slot) => {
      const cell = row.cells[slot], column = from.column + slot, look = view.look(layer, column);
      cell.layer = layer;
      cell.column = column;
      if (cell.firstChild.nodeValue !== look.text) cell.firstChild.nodeValue = look.text;
      cell.style.backgroundColor = look.colour;
      cell.style.color = look.ink;
      const name = `lg-cell${look.actual ? " lg-same" : ""}${look.hit ? " lg-hit" : ""}${look.name ? ` ${look.name}` : ""}`;
      if (cell.className !== name) cell.className = name;
      if (cell.index !== column) cell.setAttribute("aria-colindex", column + 2);
      cell.index = column;
    });
  }

  // Move the first items to the end, or the last to the start, and say which of them are to be filled again.
  function rotate(items, by) {
    const all = items.map((_, at) => at);
    if (!by) return [];
    if (Math.abs(by) >= items.length) return all;
    if (by > 0) {
      const moved = items.splice(0, by);
      items[items.length - 1].after(...moved);
      items.push(...moved);
      return all.slice(-by);
    }
    const moved = items.splice(by);
    items[0].before(...moved);
    items.unshift(...moved);
    return all.slice(0, -by);
  }

  function nameRows() {
    if (model) nameRow(model, view.model, 2);
    lines.forEach((row, slot) => nameRow(row, view.rows[from.row + slot], (model ? 3 : 2) + from.row + slot));
  }

  // Fill every cell, or only those that scrolling brought near.
  function fill(all = true) {
    const focused = scroller.getRootNode().activeElement;
    const held = focused && focused !== scroller && scroller.contains(focused);
    const before = from;
    settle();
    const across = all ? count.columns : from.column - before.column, down = all ? count.rows : from.row - before.row;
    const every = head.cells.map((_, slot) => slot), fresh = new Set(rotate(lines, down));
    nameRows();
    fillHead(rotate(head.cells, across));
    if (model) fillRow(model, rotate(model.cells, across));
    lines.forEach((row, slot) => {
      const slots = rotate(row.cells, across);
      fillRow(row, fresh.has(slot) ? every : slots);
    });
    if (place) point(place);
    if (held && scroller.getRootNode().activeElement !== now) (now || scroller).focus({ preventScroll: true });
  }

  function draw(next) {
    view = next;
    build();
    fill();
  }

  function cellAt(layer, column) {
    const slot = column - from.column;
    if (slot < 0 || slot >= count.columns) return null;
    const row = layer === view.model ? model : lines[view.rows.indexOf(layer) - from.row];
    return row ? row.cells[slot] : null;
  }

  // Mark a cell, its layer's number and its column's head.
  function point(next) {
    place = next;
    if (now) {
      now.classList.remove("lg-now", "lg-locked");
      now.tabIndex = -1;
      now.removeAttribute("aria-label");
      now.removeAttribute("aria-selected");
    }
    for (const each of lit) each.classList.remove("lg-on");
    now = cellAt(place.layer, place.column);
    scroller.tabIndex = now ? -1 : 0;
    const side = place.layer === view.model ? model : lines[view.rows.indexOf(place.layer) - from.row];
    lit = [side && side.side, head.cells[place.column - from.column]].filter(Boolean);
    for (const each of lit) each.classList.add("lg-on");
    if (!now) return;
    now.classList.add("lg-now");
    now.classList.toggle("lg-locked", place.locked);
    now.tabIndex = 0;
    now.setAttribute("aria-selected", String(place.locked));
    now.setAttribute("aria-label", act.describe(place.layer, place.column));
  }

  // Scroll the least that shows a cell beside the fixed heads; `middle` puts it in the middle.
  function reveal(layer, column, middle = false) {
    const left = column * width, room = scroller.clientWidth - sizes.gutter;
    if (left < scroller.scrollLeft || left + width > scroller.scrollLeft + room)
      scroller.scrollLeft = middle ? left - (room - width) / 2 : left < scroller.scrollLeft ? left : left + width - room;
    if (layer !== view.model) {
      const fixed = head.offsetHeight + (model ? model.offsetHeight : 0), top = view.rows.indexOf(layer) * sizes.row;
      const deep = scroller.clientHeight - fixed;
      if (top < scroller.scrollTop || top + sizes.row > scroller.scrollTop + deep)
        scroller.scrollTop = middle ? top - (deep - sizes.row) / 2 : top < scroller.scrollTop ? top : top + sizes.row - deep;
    }
    scrolled();
  }

  function scrolled() {
    if (!view) return;
    const row = first(scroller.scrollTop, sizes.row, count.rows, view.rows.length, CHUNK.rows);
    const column = first(scroller.scrollLeft, width, count.columns, view.columns, CHUNK.columns);
    if (row !== from.row || column !== from.column) fill(false);
  }

  function focus() {
    (now || scroller).focus({ preventScroll: true });
  }

  const cellOf = (event) => (event.target.closest ? event.target.closest(".lg-cell") : null);
  scroller.addEventListener("scroll", scrolled, { passive: true });
  scroller.addEventListener("pointerover", (event) => {
    const cell = cellOf(event);
    if (cell && event.pointerType !== "touch") act.hover(cell.layer, cell.column);
  });
  scroller.addEventListener("click", (event) => {
    const cell = cellOf(event), over = event.target.closest(".lg-head"), side = event.target.closest(".lg-line .lg-side");
    if (cell) act.lock(cell.layer, cell.column);
    else if (over) act.lock(null, over.column);
    else if (side) act.lock(side.parentNode.cells[0].layer, null);
    if (cell || over || side) focus();
  });
  new ResizeObserver(() => {
    const size = `${scroller.clientWidth} ${scroller.clientHeight}`;
    if (!view || !scroller.clientWidth || size === fitted) return;
    build();
    fill();
  }).observe(scroller);
  return { node: scroller, draw, point, reveal, focus, width: () => width };
}
