import { argmax, entropy, splitLogit } from "./attention.js";
import { headName, number, signed } from "./format.js";
import { TERMS } from "./Panels.jsx";
import { nameOf } from "./tokens.js";

/** One sentence about what is shown, which screen readers are told when it changes by a choice. */
export function Readout({ layer, mode, head, query, weights, preview }) {
  const patches = weights.subarray(layer.prefix.length);
  const best = layer.prefix.length + argmax(patches);
  const prefix = layer.prefix.map((name, token) => `; ${name} ${number(weights[token])}`).join("");
  return (
    <p class="readout" aria-live={preview ? "off" : "polite"}>
      Query <b>{nameOf(layer, query)}</b> · {headName(head)} of {layer.name} · mode {mode}: largest <b>{number(weights[best])}</b> at {nameOf(layer, best)}
      {prefix}; entropy {entropy(weights).toFixed(2)} nats
    </p>
  );
}

/** What one key gets, and what its logit is made of. */
export function Token({ layer, head, query, read, weights }) {
  const token = read ?? argmax(weights);
  const split = splitLogit(layer, head, query, token);
  return (
    <section class="panel token" data-token={token}>
      <h3>
        {nameOf(layer, token)} <small>{read === null ? "the token with most" : "pointed at"}</small>
      </h3>
      <p>
        weight <b class="value">{number(weights[token])}</b>
        {split && <> · logit <b class="value">{signed(Object.values(split).reduce((sum, value) => sum + value, 0))}</b> in total mode, of which</>}
        {!split && <span class="hint"> · {head === "mean" ? "choose one head to see what its logit is made of" : "several maps are mixed here, with a logit each"}</span>}
      </p>
      <dl class="legend">
        {Object.entries(split ?? {}).map(([kind, value]) => (
          <div key={kind} title={TERMS[kind][2]} data-term={kind}>
            <dt>
              <i class="swatch" style={{ background: TERMS[kind][1] }} />
              {TERMS[kind][0]}
            </dt>
            <dd class="value">{signed(value)}</dd>
          </div>
        ))}
      </dl>
    </section>
  );
}
