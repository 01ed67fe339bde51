// Find a token: every cell that has it among its top tokens.

// Which tokens of the vocabulary start with what was typed. Case and white space before the token don't matter.
function matching(vocabulary, typed) {
  const wanted = typed.replaceAll("␣", " ").replaceAll("⏎", "\n").toLowerCase();
  const spaced = wanted.startsWith(" ") || wanted.startsWith("\n");
  return vocabulary.map((token) => {
    const text = token.slice(0, 400).toLowerCase();
    return (spaced ? text : text.trimStart()).startsWith(wanted);
  });
}

// The cells with such a token, position by position and from the lowest layer up.
function findCells(source, readout, site, typed) {
  if (!typed.trim() && !typed.includes(" ")) return null;
  const flags = matching(source.payload.vocabulary, typed), cells = [], rows = source.layers(readout, site).reverse();
  const lines = rows.map((layer) => source.line(readout, site, layer));
  const tokens = new Set();
  for (let column = 0; column < source.columns; column++)
    lines.forEach((line, at) => {
      if (!line || !line.fields.topk_ids) return;
      const start = (line.start + column) * source.k;
      let hit = false;
      for (let each = start; each < start + source.k; each++)
        if (flags[line.fields.topk_ids[each]]) {
          hit = true;
          tokens.add(line.fields.topk_ids[each]);
        }
      if (hit) cells.push({ layer: rows[at], column });
    });
  return { cells, tokens: tokens.size, keys: new Set(cells.map((cell) => cell.layer * source.columns + cell.column)) };
}

// The next or previous found cell, seen from the current one.
function neighbour(found, state, step) {
  const order = (cell) => cell.column * 1e4 + cell.layer, here = order(state), cells = found.cells;
  if (step > 0) return cells.find((cell) => order(cell) > here) || cells[0];
  return cells.findLast((cell) => order(cell) < here) || cells[cells.length - 1];
}
