// How B differs from A in one measure, and whether two responses have the same tokens.

const POINTS = 100; // probabilities differ by percentage points

// The difference of a measure: how it is computed, and how it is drawn and said.
function differenceOf(measure) {
  const drawn = { name: "difference", title: `${measure.title}, B minus A`, unit: measure.unit, better: "", fixed: null, logarithmic: false, signed: true };
  if (measure.name === "probability") return { ...drawn, unit: "points", of: (a, b) => POINTS * (b - a) };
  if (measure.name === "rank") return { ...drawn, title: "Rank of the actual token, B as a multiple of A, log10", unit: "", of: (a, b) => Math.log10(b) - Math.log10(a) };
  return { ...drawn, of: (a, b) => b - a };
}

function sameTexts(some, others) {
  return some.length === others.length && some.every((text, at) => text === others[at]);
}
