// Draw the grid in the dashboard, whose page keeps the choice in its address and sends what else is wanted.

const mounted = new WeakMap();

export default function ({ parentElement, data, setStateValue, setTriggerValue }) {
  const root = parentElement.querySelector(".lens-grid");
  const host = {
    keep: (state) => setStateValue("kept", state),
    want: (plane) => setTriggerValue("wanted", plane),
  };
  const known = mounted.get(root);
  if (known) known.update(data);
  else mounted.set(root, mountLensGrid(root, data, host));
}
