import { MODES } from "./attention.js";
import { layerOf, numLayers } from "./data.js";
import { center, sameToken } from "./tokens.js";

/**
 * What the page shows. `query` is a token of the layer of the first view; `compare` is a second subject, or null;
 * `head` a number or "mean".
 * @typedef {{subject: number, compare: number | null, layer: number, head: number | "mean", query: number,
 *            mode: import("./attention.js").Mode, all: boolean}} State
 */

const within = (value, count, otherwise) => (Number.isInteger(value) ? Math.max(0, Math.min(value, count - 1)) : otherwise);

const whole = (text) => (text === null || text === "" ? null : Number(text));

/** A state from the address, each part of it brought to what these data have. */
export function fromHash(data, hash) {
  const asked = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (name) => whole(asked.get(name));
  const subject = within(number("subject"), data.subjects.length, 0);
  const layer = within(number("layer"), numLayers(data, subject), numLayers(data, subject) - 1);
  const seen = layerOf(data, subject, layer);
  return {
    subject,
    layer,
    compare: within(number("compare"), data.subjects.length, null),
    head: within(number("head"), seen.heads, "mean"),
    query: within(number("query"), seen.tokens, center(seen)),
    mode: MODES.includes(asked.get("mode")) ? asked.get("mode") : "total",
    all: asked.get("show") === "all",
  };
}

export function toHash({ compare, all, ...shown }) {
  const more = { ...(compare !== null && { compare }), ...(all && { show: "all" }) };
  return `#${new URLSearchParams({ ...shown, ...more })}`;
}

export const clampHead = (layer, head) => (head === "mean" ? head : Math.min(head, layer.heads - 1));

/** The state after a change: query and head follow where another layer or subject has another grid or fewer heads. */
export function change(data, state, asked) {
  const next = { ...state, ...asked };
  next.layer = Math.max(0, Math.min(next.layer, numLayers(data, next.subject) - 1));
  const layer = layerOf(data, next.subject, next.layer);
  if (asked.query === undefined) next.query = sameToken(layerOf(data, state.subject, state.layer), state.query, layer);
  return { ...next, head: clampHead(layer, next.head) };
}

/** Of "mean", 0, 1, ...: the one that is `by` further on, around the end. */
export function nextHead(layer, head, by) {
  const count = layer.heads + 1;
  const place = (head === "mean" ? 0 : head + 1) + by + count;
  return place % count ? (place % count) - 1 : "mean";
}
