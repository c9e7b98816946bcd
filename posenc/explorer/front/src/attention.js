/** @typedef {"total" | "content" | "position" | "bias"} Mode */

export const MODES = ["total", "content", "position", "bias"];

export const MEANINGS = {
  total: "the attention of the model",
  content: "every token without the mean of its place: where what is seen sends the head",
  position: "every token replaced by the mean of its place: where position alone sends the head",
  bias: "only what posenc's encodings add to the logits",
};

/** Why a layer has no such mode; null where it has. */
export function whyNot(layer, mode) {
  if (mode === "total") return null;
  if (mode === "bias") return layer.parts.some((part) => part.biases.length) ? null : "no encoding of posenc adds a bias in this layer";
  if (!layer.means) return layer.why_no_means ?? "the means of the places were not measured";
  return layer.parts.length > 1 ? `this layer mixes ${layer.parts.length} attention maps, whose logits are not one sum` : null;
}

/** The mode that a layer can show: the one asked for, else the model's own attention. */
export const modeOf = (layer, mode) => (whyNot(layer, mode) ? "total" : mode);

/**
 * Attention of one query in every head, and its mean over heads.
 * @returns {{heads: Float64Array[], mean: Float64Array}}
 */
export function attend(layer, mode, query) {
  const heads = Array.from({ length: layer.heads }, (_, head) => row(layer, mode, head, query));
  const mean = new Float64Array(layer.tokens);
  for (const weights of heads) for (let j = 0; j < mean.length; j++) mean[j] += weights[j] / heads.length;
  return { heads, mean };
}

export const pick = (attention, head) => (head === "mean" ? attention.mean : attention.heads[head]);

/** A mixture is shown as the model mixes it; a mode that leaves things out is made to sum to one again. */
function row(layer, mode, head, query) {
  const sum = new Float64Array(layer.tokens);
  let total = 0;
  for (const part of layer.parts.filter((each) => mode !== "bias" || each.biases.length)) {
    const weights = softmax(logits(layer, part, mode, head, query));
    const weight = part.weight ? at(layer, part.weight, head, query, 0) : 1;
    for (let j = 0; j < sum.length; j++) sum[j] += weight * weights[j];
    total += weight;
  }
  return mode === "total" ? sum : sum.map((weight) => weight / total);
}

/** In place. A row that may look nowhere (all of it masked) gets zeros, as fused attention gives. */
function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (largest === -Infinity) return logits.fill(0);
  let sum = 0;
  for (let j = 0; j < logits.length; j++) sum += logits[j] = Math.exp(logits[j] - largest);
  for (let j = 0; j < logits.length; j++) logits[j] /= sum;
  return logits;
}

function logits(layer, part, mode, head, query) {
  const out = new Float64Array(layer.tokens);
  if (mode === "total") addProducts(out, layer, part.scale, vector(layer, part.query, head, query), part.key, head);
  if (mode === "position") addProducts(out, layer, part.scale, vector(layer, layer.means.query, head, query), layer.means.key, head);
  if (mode === "content") addContent(out, layer, part, head, query);
  if (part.native && (mode === "total" || mode === "position")) addDense(out, layer, part.native, head, query);
  if (mode !== "content") for (const bias of part.biases) BIASES[bias.kind](out, layer, bias, head, query);
  return out;
}

function addContent(out, layer, part, head, query) {
  const content = sum(contentOf(layer, part.query, layer.means.query, head, query), meanQuery(layer, head), 1);
  addProducts(out, layer, part.scale, content, part.key, head);
  addProducts(out, layer, -part.scale, content, layer.means.key, head);
}

/** out[j] += scale * vector . keys[head][j] */
function addProducts(out, layer, scale, vector, array, head) {
  const keys = layer.read(array);
  const width = vector.length;
  let at = head * layer.tokens * width;
  for (let j = 0; j < out.length; j++) {
    let product = 0;
    for (let d = 0; d < width; d++) product += vector[d] * keys[at++];
    out[j] += scale * product;
  }
}

/** Where row `query` of a [1 or heads, 1 or N, size] array begins. */
const start = ([heads, rows, size], head, query) => ((heads > 1 ? head * rows : 0) + (rows > 1 ? query : 0)) * size;

const at = (layer, array, head, query, k) => layer.read(array)[start(array.shape, head, query) + k];

function vector(layer, array, head, query) {
  const from = start(array.shape, head, query);
  return layer.read(array).subarray(from, from + array.shape[2]);
}

function addDense(out, layer, array, head, query) {
  const bias = vector(layer, array, head, query);
  for (let j = 0; j < out.length; j++) out[j] += bias[j];
}

function addLookup(out, layer, { by, table, index }, head, query) {
  const values = layer.read(table);
  const indices = layer.read(index);
  for (let j = 0; j < out.length; j++)
    out[j] += values[start(table.shape, head, by === "key" ? j : query) + indices[query * out.length + j]];
}

const BIASES = {
  lookup: addLookup,
  dense: (out, layer, { bias }, head, query) => addDense(out, layer, bias, head, query),
  "low rank": (out, layer, { left, right }, head, query) =>
    addProducts(out, layer, 1, vector(layer, left, head, query), right, right.shape[0] > 1 ? head : 0),
};

const sum = (a, b, sign) => Float64Array.from(a, (value, d) => value + sign * b[d]);

const contentOf = (layer, array, means, head, token) => sum(vector(layer, array, head, token), vector(layer, means, head, token), -1);

const meanQueries = new WeakMap();

/** The mean query over patches: content is seen from there, so that what all queries share stays in. */
function meanQuery(layer, head) {
  if (!meanQueries.has(layer)) meanQueries.set(layer, Array.from({ length: layer.heads }, (_, h) => averagePatch(layer, h)));
  return meanQueries.get(layer)[head];
}

function averagePatch(layer, head) {
  const mean = new Float64Array(layer.means.query.shape[2]);
  const patches = layer.tokens - layer.prefix.length;
  for (let token = layer.prefix.length; token < layer.tokens; token++)
    vector(layer, layer.means.query, head, token).forEach((value, d) => (mean[d] += value / patches));
  return mean;
}

const dot = (a, b) => a.reduce((product, value, d) => product + value * b[d], 0);

/**
 * The logit of one query and key as a sum of what content, position and biases put in; without means the
 * product of query and key stays whole. Null where there is no one logit: of several maps, or of several heads.
 */
export function splitLogit(layer, head, query, key) {
  const [part, ...others] = layer.parts;
  if (others.length || head === "mean") return null;
  const only = (add) => add(new Float64Array(layer.tokens))[key];
  const split = products(layer, part, head, query, key);
  if (part.native) split.native_bias = at(layer, part.native, head, query, key);
  if (part.biases.length) split.bias = only((out) => (part.biases.forEach((bias) => BIASES[bias.kind](out, layer, bias, head, query)), out));
  return split;
}

function products(layer, { scale, ...part }, head, query, key) {
  if (!layer.means) return { "query.key": scale * dot(vector(layer, part.query, head, query), vector(layer, part.key, head, key)) };
  const [q, k] = [vector(layer, layer.means.query, head, query), vector(layer, layer.means.key, head, key)];
  const contentQ = contentOf(layer, part.query, layer.means.query, head, query);
  const contentK = contentOf(layer, part.key, layer.means.key, head, key);
  return {
    "content.content": scale * dot(contentQ, contentK),
    "content.position": scale * dot(contentQ, k),
    "position.content": scale * dot(q, contentK),
    "position.position": scale * dot(q, k),
  };
}

/** In nats: 0 where one token gets all, log N where all get the same. */
export const entropy = (weights) => -weights.reduce((sum, weight) => sum + (weight > 0 ? weight * Math.log(weight) : 0), 0);

/** The largest weight among the patches, which the colors of the grid run up to. */
export const largestPatch = (layer, weights) => weights.subarray(layer.prefix.length).reduce((a, b) => Math.max(a, b), 0);

export const argmax = (weights) => weights.reduce((best, weight, j) => (weight > weights[best] ? j : best), 0);
