// Draw the grids of a page of its own: a file, a report or a frame in a notebook. Enter keeps the cell in the address.

const NUMBERS = ["layer", "position"];

/** The choice in the part of the address after #. */
function chosenInAddress() {
  const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const name of NUMBERS) {
    if (name in found) found[name] = Number.parseInt(found[name], 10);
    if (Number.isNaN(found[name])) delete found[name];
  }
  return found;
}

const addressed = location.protocol !== "about:"; // the frame in a notebook has no address of its own
const places = [...document.querySelectorAll(".lens-grid")];
for (const root of places) {
  const data = JSON.parse(root.nextElementSibling.textContent);
  const alone = addressed && places.length === 1;
  if (alone) data.chosen = { ...data.chosen, ...chosenInAddress() };
  const keep = (state) => {
    const named = Object.entries(state).filter(([, value]) => value !== null && value !== undefined);
    history.replaceState(null, "", `#${new URLSearchParams(named)}`);
  };
  mountLensGrid(root, data, alone ? { keep } : {});
}
