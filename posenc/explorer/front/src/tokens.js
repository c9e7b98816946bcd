// Tokens by place: a query stays where it is in the image when layer, subject or view changes its grid.

export const rowOf = (layer, token) => Math.floor((token - layer.prefix.length) / layer.width);
export const columnOf = (layer, token) => (token - layer.prefix.length) % layer.width;
export const isPrefix = (layer, token) => token < layer.prefix.length;
export const patch = (layer, row, column) => layer.prefix.length + row * layer.width + column;
export const center = (layer) => patch(layer, layer.height >> 1, layer.width >> 1);

export const nameOf = (layer, token) =>
  isPrefix(layer, token) ? layer.prefix[token] : `row ${rowOf(layer, token)}, column ${columnOf(layer, token)}`;

const rescale = (index, from, to) => Math.floor(((index + 0.5) * to) / from);

/** The token of `to` at the place of a token of `from`; a prefix token that `to` lacks becomes its last, or the center. */
export function sameToken(from, token, to) {
  if (isPrefix(from, token)) return to.prefix.length ? Math.min(token, to.prefix.length - 1) : center(to);
  return patch(to, rescale(rowOf(from, token), from.height, to.height), rescale(columnOf(from, token), from.width, to.width));
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

const clamp = (value, last) => Math.max(0, Math.min(value, last));

/** One step of an arrow key; the prefix tokens lie beneath the grid, as their buttons do. */
export function step(layer, token, key) {
  const [down, right] = STEPS[key];
  if (isPrefix(layer, token)) {
    if (down < 0) return patch(layer, layer.height - 1, layer.width >> 1);
    return clamp(token + right, layer.prefix.length - 1);
  }
  const row = rowOf(layer, token) + down;
  if (row === layer.height && layer.prefix.length) return 0;
  return patch(layer, clamp(row, layer.height - 1), clamp(columnOf(layer, token) + right, layer.width - 1));
}
