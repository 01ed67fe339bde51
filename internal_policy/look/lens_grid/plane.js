// The numbers of one response: decode its planes once, then look up any measure by layer and column.

const FORMAT = 1; // of the payload, as in payload.py
const NO_TOKEN = 0xffffffff;
const READ_AT_A_CELL = ["resid_pre", "attn_out", "mlp_out", "resid_post"]; // layer input, attention, FFN, layer output
const MODULE = { attn_in: "attention", attn_out: "attention", resid_mid: "state between attention and FFN", mlp_in: "FFN", mlp_out: "FFN" }; // what a layer without a site lacks
const ARRAYS = { rank: Int32Array, topk_ids: Uint32Array };

async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// A plane with its arrays. `rowOf` gives the row of a layer.
async function decode(plane, columns, k) {
  const buffer = await inflate(plane.data);
  const fields = {};
  let at = 0;
  for (const name of plane.fields) {
    const length = plane.layers.length * columns * (name.startsWith("topk") ? k : 1);
    fields[name] = new (ARRAYS[name] || Float32Array)(buffer, at, length);
    at += 4 * length;
  }
  return { data: plane.data, fields, rowOf: new Map(plane.layers.map((layer, row) => [layer, row])) };
}

// A payload with its decoded planes. `before` is the payload shown until now: what didn't change isn't decoded again.
function openPayload(payload, before = null) {
  if (payload.format !== FORMAT) throw new Error(`Can't read format ${payload.format} of a lens grid, only ${FORMAT}.`);
  const columns = payload.tokens.length, { k, n_layers: model } = payload;
  const planes = new Map();
  const key = (readout, site) => `${readout}/${site}`;
  const sent = (readout, site) => (payload.planes[readout] || {})[site];
  const glyphs = new Array(payload.vocabulary.length);

  async function load(readout, site) {
    const plane = sent(readout, site), name = key(readout, site);
    if (!plane || planes.has(name)) return;
    const known = before && before.columns === columns && before.payload.k === k && before.planes.get(name);
    planes.set(name, known && known.data === plane.data ? known : await decode(plane, columns, k));
  }

  // Decode all that a grid of this readout and site shows, the panel's four sites included.
  async function open(readout, site) {
    await Promise.all([...new Set([site, "final", ...READ_AT_A_CELL])].map((name) => load(readout, name)));
  }

  // The position in the response of a column, and the column of a position, -1 if it has none.
  const position = (column) => payload.first + column * payload.every;
  function columnOf(wanted) {
    const column = (wanted - payload.first) / payload.every;
    return Number.isInteger(column) && column >= 0 && column < columns ? column : -1;
  }

  // Where a layer's numbers are: its plane and first index. The input of a layer is the output of the one before.
  function line(readout, site, layer) {
    let plane = planes.get(key(readout, layer === model ? "final" : site));
    let row = plane && plane.rowOf.get(layer);
    if (row === undefined && site === "resid_pre" && layer < model) {
      plane = planes.get(key(readout, "resid_post"));
      row = plane && plane.rowOf.get(layer - 1);
    }
    return row === undefined ? null : { fields: plane.fields, start: row * columns, model: layer === model };
  }

  // The measured layers of a site, from the highest, with the model's own policy first.
  function layers(readout, site) {
    const found = new Set((sent(readout, site) || { layers: [] }).layers);
    if (site === "resid_pre") {
      const after = (sent(readout, "resid_post") || { layers: [] }).layers;
      for (const layer of after) if (layer + 1 < model) found.add(layer + 1);
    }
    if (sent(readout, "final")) found.add(model);
    return [...found].sort((a, b) => b - a);
  }

  // That a layer has no such site, in words; empty if it has.
  function none(site, layer) {
    return (payload.lacking[site] || []).includes(layer) ? `this layer has no ${MODULE[site]}` : "";
  }

  // A function (layer, column) -> value of a measure, NaN where it wasn't measured.
  function reader(readout, site, measure) {
    const lines = new Map(layers(readout, site).map((layer) => [layer, line(readout, site, layer)]));
    return (layer, column) => {
      const here = lines.get(layer);
      return here ? value(here, measure, column) : NaN;
    };
  }

  function value(here, measure, column) {
    const at = here.start + column;
    if (measure === "norm" && here.model) return NaN; // after the final norm, which is another space
    if (measure === "probability") return here.fields.topk_probs && here.fields.topk_ids[at * k] !== NO_TOKEN ? here.fields.topk_probs[at * k] : NaN;
    const numbers = here.fields[measure];
    if (!numbers || (measure === "rank" && numbers[at] === 0)) return NaN;
    return numbers[at];
  }

  // Whether a site has a measure at all.
  function has(readout, site, measure) {
    const plane = sent(readout, site) || (site === "resid_pre" && sent(readout, "resid_post"));
    return Boolean(plane) && plane.fields.includes(measure === "probability" ? "topk_probs" : measure);
  }

  // The top tokens of a policy as [index in the vocabulary, probability], most likely first.
  function top(readout, site, layer, column) {
    const here = line(readout, site, layer);
    if (!here || !here.fields.topk_ids) return [];
    const found = [];
    for (let at = (here.start + column) * k, end = at + k; at < end && here.fields.topk_ids[at] !== NO_TOKEN; at++)
      found.push([here.fields.topk_ids[at], here.fields.topk_probs[at]]);
    return found;
  }

  // The rank of a token among the top ones, 0 if it isn't there.
  function rankOf(token, readout, site, layer, column) {
    const here = line(readout, site, layer);
    if (!here || !here.fields.topk_ids) return 0;
    const start = (here.start + column) * k;
    for (let at = start; at < start + k; at++) if (here.fields.topk_ids[at] === token) return at - start + 1;
    return 0;
  }

  // The rank of the actual token, NaN if unknown.
  function actualRank(readout, site, layer, column) {
    const here = line(readout, site, layer);
    const rank = here ? value(here, "rank", column) : NaN;
    return rank || rankOf(payload.actual[column], readout, site, layer, column) || NaN;
  }

  // The probability of the actual token, NaN if unknown.
  function actualProbability(readout, site, layer, column) {
    const here = line(readout, site, layer);
    if (here && here.fields.logprob) return Math.exp(here.fields.logprob[here.start + column]);
    const found = top(readout, site, layer, column).find(([token]) => token === payload.actual[column]);
    return found ? found[1] : NaN;
  }

  return {
    payload, planes, columns, model, k, position, columnOf, sent, open, line, layers, none, reader, has, top, rankOf, actualRank, actualProbability,
    glyph: (token) => (glyphs[token] ??= visible(payload.vocabulary[token])),
    siteTitle: (name) => (payload.sites.find((site) => site.name === name) || { title: name }).title,
    readoutTitle: (name) => payload.readouts.find((readout) => readout.name === name).title,
    measure: (name) => payload.measures.find((measure) => measure.name === name),
  };
}
