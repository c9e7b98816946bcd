import { cssColor } from "./color.js";
import { number } from "./format.js";

/** CLS and registers, which have no place in the image: each with its weight, and a query as the patches are. */
export function Prefix({ layer, weights, largest, query, read, onPoint, onChoose }) {
  if (!layer.prefix.length) return null;
  return (
    <div class="prefix" role="group" aria-label="prefix tokens">
      {layer.prefix.map((name, token) => (
        <button
          key={token}
          class={token === read ? "read" : ""}
          aria-pressed={token === query}
          data-token={token}
          title={`${name} has no place in the image. Click: make it the query.`}
          onClick={(event) => onChoose(token, event)}
          onPointerEnter={(event) => event.pointerType === "mouse" && onPoint(token, event)}
          onPointerLeave={(event) => event.pointerType === "mouse" && onPoint(null, event)}
        >
          <i class="swatch" style={{ background: cssColor(weights[token], largest) }} />
          {name} <span class="value">{number(weights[token])}</span>
        </button>
      ))}
    </div>
  );
}
