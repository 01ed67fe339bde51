// The keys of the grid: arrows, Home, End and Page keys move, Enter keeps the cell, Escape unlocks it.

const PAGE = 10;
const MOVES = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  PageUp: [-PAGE, 0], PageDown: [PAGE, 0], Home: [0, -Infinity], End: [0, Infinity],
};

// Listen to the keys of `node`. `rows` are the layers from the top.
function listenToKeys(node, act) {
  node.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey) return;
    if (event.key === "Enter") act.keep();
    else if (event.key === "Escape") act.free();
    else if (MOVES[event.key]) {
      const [down, across] = MOVES[event.key];
      const corner = event.ctrlKey && across && !Number.isFinite(across);
      act.move(corner ? Math.sign(across) * Infinity : down, across);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}
