// Save a figure as an image that plotly.js draws here, and copy its address or its Python.

let library; // plotly.js, which is only fetched for the first image

function plotly(address) {
  library ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => done(globalThis.Plotly);
    script.onerror = () => { library = undefined; failed(new Error("The server doesn't answer.")); };
    document.head.append(script);
  });
  return library;
}

async function save(data, format) {
  const Plotly = await plotly(data.library);
  const { width, height, scale } = data.size;
  const wanted = { format, width, height, scale: format === "png" ? scale : 1 };
  const link = document.createElement("a");
  link.href = await Plotly.toImage(JSON.parse(data.figure), wanted);
  link.download = `${data.file}.${format}`;
  link.click();
  return `Saved ${link.download}`;
}

function address(data) {
  const here = new URL(location.href);
  const absent = data.address.filter(([name]) => !here.searchParams.has(name));
  for (const [name, value] of absent) here.searchParams.append(name, value);
  return here.href;
}

async function copy(text, refused) {
  try {
    await navigator.clipboard.writeText(text);
    return "Copied";
  } catch { // no clipboard at this address, or the user denied it
    refused(text);
    return "Copy it from the box below";
  }
}

export default function ({ parentElement, data, setTriggerValue }) {
  const refused = (text) => setTriggerValue("refused", text);
  const offered = {
    ...(data.figure && {
      PNG: ["Save the figure as PNG", () => save(data, "png")],
      SVG: ["Save the figure as SVG", () => save(data, "svg")],
    }),
    "Copy link": ["Copy the address of this view", () => copy(address(data), refused)],
    ...(data.python && { "Copy Python": ["Copy the Python that draws this figure", () => copy(data.python, refused)] }),
  };
  const root = parentElement.querySelector(".figure-tools");
  const status = root.querySelector("[role=status]") ?? document.createElement("span");
  status.setAttribute("role", "status");
  root.replaceChildren();
  for (const [label, [title, act]] of Object.entries(offered)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label, title });
    button.onclick = async () => {
      button.disabled = true;
      status.textContent = "";
      try {
        status.textContent = await act();
      } catch (error) {
        status.textContent = `That failed: ${error.message}`;
      }
      button.disabled = false;
    };
    root.append(button);
  }
  root.append(status);
  if (data.figure) root.onpointerover = root.onfocusin = () => plotly(data.library).catch(() => {}); // ready when a button is pressed
}
