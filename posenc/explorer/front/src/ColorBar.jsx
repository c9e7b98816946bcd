import { GRADIENT } from "./color.js";
import { number } from "./format.js";

/** What the colors of the map mean, with the weight that each token had if all had the same. */
export function ColorBar({ largest, tokens }) {
  const even = 1 / tokens / largest;
  return (
    <div class="bar" role="img" aria-label={`colors from 0 to ${number(largest)}`}>
      <div class="gradient" style={{ background: GRADIENT }}>
        {even < 1 && <i style={{ left: `${100 * even}%` }} title={`uniform: 1/${tokens} = ${number(1 / tokens)}`} />}
      </div>
      <div class="ticks">
        <span>0</span>
        <span>{number(largest / 2)}</span>
        <span>{number(largest)}</span>
      </div>
      <p class="hint">weight of a token{even < 1 && `; the mark is uniform attention, 1/${tokens}`}</p>
    </div>
  );
}
