// Colours of the lens grid: a measure's scale, its palette, and the ink that is readable on each colour.

const VIRIDIS = "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725";
const CIVIDIS = "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838";
const BLUE_RED = "2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b";
const PINS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7"];
const STEPS = 256;
const QUANTILE = 0.98;

function channels(colour) {
  if (colour.startsWith("#") || /^[0-9a-f]{6}$/i.test(colour)) return colour.replace("#", "").match(/../g).map((part) => parseInt(part, 16));
  return (colour.match(/[\d.]+/g) || [255, 255, 255]).slice(0, 3).map(Number);
}

function mixed(from, to, share) {
  return from.map((value, at) => Math.round(value + (to[at] - value) * share));
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => (value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Black or white, whichever contrasts more: at least 4.5 to 1 on every colour.
function ink(rgb) {
  return luminance(rgb) > 0.179 ? "#000" : "#fff";
}

// 256 colours with their inks; `fade` mixes them with the page's background, for cells that aren't searched for.
function palette(measure, fade = 0, background = [255, 255, 255]) {
  const source = measure.signed ? BLUE_RED : measure.name.startsWith("entropy") ? CIVIDIS : VIRIDIS;
  const stops = source.split(" ").map(channels);
  return Array.from({ length: STEPS }, (_, step) => {
    const at = (step / (STEPS - 1)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at));
    const rgb = mixed(mixed(stops[low], stops[low + 1], at - low), background, fade);
    return { colour: `rgb(${rgb.join(",")})`, ink: ink(rgb) };
  });
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))];
}

// The ends of the automatic scale: the 98th percentile, and 0 or the 2nd percentile.
function automatic(measure, values) {
  const sizes = measure.signed ? values.map(Math.abs) : values;
  const sorted = Float64Array.from(sizes).sort();
  if (!sorted.length) return [0, 1];
  const most = quantile(sorted, QUANTILE);
  if (measure.signed) return [-most || -1, most || 1];
  if (measure.name === "rank") return [1, Math.max(most, 10)];
  if (sorted[0] < 0) return [Math.min(quantile(sorted, 1 - QUANTILE), -1e-3), 0];
  if (measure.logarithmic) {
    const least = quantile(sorted, 1 - QUANTILE);
    return [least, most > least ? most : least * 10 || 1];
  }
  return [0, most || 1];
}

// The scale of a measure. `step(value)` is the colour's number, -1 for a value that wasn't measured.
function scaleOf(measure, values, fixed) {
  const [low, high] = fixed && measure.fixed ? measure.fixed : automatic(measure, values);
  const turn = measure.logarithmic && low >= 0 ? (value) => Math.log(Math.max(value, 1e-12)) : (value) => value;
  const start = turn(low), span = turn(high) - start || 1, flip = measure.better === "low";
  const step = (value) => {
    if (!Number.isFinite(value)) return -1;
    const share = Math.min(1, Math.max(0, (turn(value) - start) / span));
    return Math.round((flip ? 1 - share : share) * (STEPS - 1));
  };
  let [least, most] = [low, high];
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return { measure, low, high, least, most, flip, step };
}

// The legend: the palette from the lowest value to the highest, with its ends in words.
function drawLegend(box, scale, title, note) {
  const colours = palette(scale.measure).map((each) => each.colour);
  if (scale.flip) colours.reverse();
  const bar = element("span", "lg-ramp");
  bar.style.background = `linear-gradient(to right, ${colours.filter((_, at) => at % 15 === 0).join(",")})`;
  const end = (value, beyond, sign) => {
    const [text, farther] = [value, beyond].map((each) => amount(each, scale.measure));
    return element("span", "lg-end", text === farther ? text : `${sign} ${text}`);
  };
  const key = element("span", "lg-key");
  key.append(end(scale.low, scale.least, "≤"), bar, end(scale.high, scale.most, "≥"));
  box.replaceChildren(element("span", "lg-what", title), key, element("span", "lg-why", note));
}
