import { MODES, whyNot } from "./attention.js";
import { nextHead } from "./state.js";
import { step } from "./tokens.js";

const typing = ({ key, target }) => target.tagName === "SELECT" || (target.tagName === "INPUT" && key.startsWith("Arrow"));

/** What a key asks to change, given what is shown; null where it asks nothing. */
export function asked(event, layer, state) {
  const { key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event)) return null;
  if (key.startsWith("Arrow")) return { query: step(layer, state.query, key) };
  if (key in MODES_BY_KEY) return whyNot(layer, MODES_BY_KEY[key]) ? null : { mode: MODES_BY_KEY[key] };
  return OTHERS[key]?.(layer, state) ?? null;
}

const MODES_BY_KEY = Object.fromEntries(MODES.map((mode, index) => [String(index + 1), mode]));

const OTHERS = {
  l: (_, state) => ({ layer: state.layer + 1 }),
  L: (_, state) => ({ layer: state.layer - 1 }),
  h: (layer, state) => ({ head: nextHead(layer, state.head, 1) }),
  H: (layer, state) => ({ head: nextHead(layer, state.head, -1) }),
  c: (layer) => (layer.prefix.length ? { query: 0 } : null),
  a: (_, state) => ({ all: !state.all }),
};
