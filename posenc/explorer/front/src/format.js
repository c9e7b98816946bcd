/** Weights: three digits, however small. */
export const number = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(3)).replace("-", "−");

/** Logits, shares, distances: two decimals, and no sign where they are zero. */
export const signed = (value) => (Number.isFinite(value) ? value.toFixed(2) : value < 0 ? "-∞" : "∞").replace(/^-0\.00$/, "0.00").replace("-", "−");

export const headName = (head) => (head === "mean" ? "mean of heads" : `head ${head}`);
