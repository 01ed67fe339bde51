// Texts of the lens grid: tokens with visible white space, numbers, and elements that only ever hold text.

const SHOWN = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const UNSEEN = /[\p{C}\p{Z}]/u;
const BLANK = "\u034f\u115f\u1160\u2800\u3164\uffa0"; // invisible, but classed as letters or marks
const LONGEST = 120; // characters of a token that are ever drawn

function seen(char) {
  const hidden = UNSEEN.test(char) || BLANK.includes(char);
  return hidden ? `⟨U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩` : char;
}

// A token with a sign for every white space and invisible character, as Python's theme.glyphs.
function visible(token, most = LONGEST) {
  const chars = Array.from(token.slice(0, 2 * most + 2));
  const cut = chars.length > most ? [...chars.slice(0, most - 1), "…"] : chars;
  const seat = /^\p{M}/u.test(token) ? "◌" : "";
  return seat + cut.map((char) => SHOWN[char] || seen(char)).join("") || "∅";
}

// A token inside running text: spaces stay spaces, and a line break also breaks the line.
function running(token) {
  const chars = Array.from(token.slice(0, 2 * LONGEST));
  return chars.slice(0, LONGEST).map((char) => (char === " " ? " " : char === "\n" ? "⏎\n" : SHOWN[char] || seen(char))).join("");
}

function percent(share) {
  if (!Number.isFinite(share)) return "–";
  if (share > 0 && share < 1e-5) return "~0%";
  return `${Number((100 * share).toPrecision(share >= 0.1 ? 3 : 2))}%`;
}

// The same in few characters, for narrow lists.
function brief(share) {
  return share >= 0.1 ? `${Math.round(100 * share)}%` : share >= 5e-4 ? `${(100 * share).toFixed(1)}%` : "~0%";
}

function counted(number, word) {
  return `${number.toLocaleString("en-US")} ${word}${number === 1 ? "" : "s"}`;
}

// A value of a measure, with its unit.
function amount(value, measure) {
  if (!Number.isFinite(value)) return "not measured";
  if (measure.name === "probability") return percent(value);
  if (measure.name === "rank") return value.toLocaleString("en-US");
  const tiny = value !== 0 && Math.abs(value) < 1e-4;
  const text = tiny ? "~0" : Number(value.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 });
  const sign = measure.signed && value > 0 && !tiny ? "+" : "";
  return `${sign}${text}${measure.unit ? ` ${measure.unit}` : ""}`.replace("-", "−");
}

function element(tag, name = "", text = null) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== null) made.textContent = text;
  return made;
}

// An element of a drawing.
function drawn(tag, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Set a text only where it changed, because hovering rewrites many that didn't.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
