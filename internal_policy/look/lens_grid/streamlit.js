// Draw the grid in the dashboard, whose page answers the events that it named in `data.events`.

export default function ({ parentElement, data, setTriggerValue }) {
  const known = { keep: "kept", want: "wanted", read: "read" };
  const named = Object.entries(known).filter(([, event]) => data.events.includes(event));
  const host = Object.fromEntries(named.map(([name, event]) => [name, (value) => setTriggerValue(event, value)]));
  mountLensGrid(parentElement.querySelector(".lens-grid"), data, host);
}
