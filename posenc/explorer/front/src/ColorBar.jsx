import { GRADIENT } from "./color.js";
import { number } from "./format.js";

/** What the colors of the map mean, with the weight of each token if all had the same; and how much they cover the image. */
export function ColorBar({ largest, tokens, opacity, onOpacity }) {
  const even = 1 / tokens / largest;
  return (
    <div class="bar">
      <div class="gradient" role="img" aria-label={`colors from 0 to ${number(largest)}`} style={{ background: GRADIENT }}>
        {even < 1 && <i style={{ left: `${100 * even}%` }} title={`uniform: 1/${tokens} = ${number(1 / tokens)}`} />}
      </div>
      <div class="ticks">
        <span>0</span>
        <span>{number(largest / 2)}</span>
        <span>{number(largest)}</span>
      </div>
      <div class="under hint">
        <span>weight{even < 1 && <> · <i class="mark" /> uniform: 1/{tokens}</>}</span>
        <label>
          map <input type="range" name="opacity" min="0" max="1" step="0.05" value={opacity} onInput={(event) => onOpacity(Number(event.target.value))} aria-label="opacity of the map over the image" />
        </label>
      </div>
    </div>
  );
}
