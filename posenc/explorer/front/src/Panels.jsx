import { layerOf, numLayers } from "./data.js";
import { headName, signed } from "./format.js";

/** Kinds of terms in the order and the colors they are drawn in (Tol's bright scheme: safe for the color-blind). */
export const TERMS = {
  "content.content": ["content · content", "#4477aa", "the query's content with the key's content"],
  "content.position": ["content · position", "#66ccee", "the query's content with the key's position"],
  "position.content": ["position · content", "#ccbb44", "the query's position with the key's content"],
  "position.position": ["position · position", "#ee6677", "the query's position with the key's position"],
  "mean.content": ["mean · content", "#8c8c8c", "what all queries share, with the key's content"],
  "mean.position": ["mean · position", "#c4c4c4", "what all queries share, with the key's position"],
  native_bias: ["native bias", "#aa3377", "the model's own bias"],
  bias: ["posenc's bias", "#228833", "what posenc's encodings add"],
  interaction: ["interaction", "#e08f3c", "what the terms have in common"],
  "query.key": ["query · key", "#4477aa", "not split: the means of the places are not known"],
};

const names = (layer) => [...Array(layer.heads).keys()];
const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
const of = (numbers, head) => (head === "mean" ? mean(numbers) : numbers[head]);

function HeadRow({ head, chosen, onChoose, value, children }) {
  return (
    <button class="headrow" aria-pressed={chosen} aria-label={`${headName(head)}: ${value}`} data-head={head} tabIndex={chosen ? 0 : -1} onClick={() => onChoose({ head })}>
      <span>{head}</span>
      {children}
    </button>
  );
}

/** The longest distance of any head: all layers of a subject are drawn against it. */
function longestOf(data, subject) {
  const all = Array.from({ length: numLayers(data, subject) }, (_, index) => layerOf(data, subject, index));
  return [all, Math.max(...all.flatMap((each) => each.distance))];
}

/** How far each head looks: distances of patches, weighted by attention. */
export function Distance({ data, subject, layer, head, onChoose }) {
  const [, longest] = longestOf(data, subject);
  return (
    <section class="panel distance">
      <h3>Mean attention distance <small>in patches</small></h3>
      {["mean", ...names(layer)].map((each) => (
        <HeadRow key={each} head={each} chosen={each === head} onChoose={onChoose} value={`${signed(of(layer.distance, each))} patches`}>
          <span class="track">
            <i style={{ width: `${(100 * of(layer.distance, each)) / longest}%` }} />
          </span>
          <span class="value">{signed(of(layer.distance, each))}</span>
        </HeadRow>
      ))}
    </section>
  );
}

/** Distance of every head against depth (Dosovitskiy et al. 2021, figure 7); a click chooses the layer. */
export function Depth({ data, subject, layer, head, onChoose }) {
  const [all, longest] = longestOf(data, subject);
  if (all.length < 2) return null;
  return (
    <section class="panel depth">
      <h3>Distance over depth <small>one dot per head</small></h3>
      <div class="plot">
        <span class="axis"><span>{signed(longest)}</span><span>0</span></span>
        {all.map((each) => (
          <i key={each.index} class={each === layer ? "here" : ""} title={each.name} onClick={() => onChoose({ layer: each.index })}>
            {each.distance.map((distance, index) => (
              <b key={index} class={each === layer && index === head ? "chosen" : ""} style={{ bottom: `${(100 * distance) / longest}%` }} />
            ))}
          </i>
        ))}
      </div>
    </section>
  );
}

const kinds = (shares) => Object.keys(TERMS).filter((kind) => shares[kind]);
const sumOf = (numbers) => numbers.reduce((sum, value) => sum + value, 0);

/** What the logits of each head vary by; negative shares are numbers beside the bar, for a bar cannot show them. */
function Stack({ shares, head }) {
  const parts = kinds(shares).map((kind) => [kind, of(shares[kind], head)]);
  const positive = sumOf(parts.map(([, value]) => Math.max(value, 0)));
  const negative = sumOf(parts.map(([, value]) => Math.min(value, 0)));
  return (
    <>
      <span class="track">
        {parts.map(([kind, value]) => value > 0 && <i key={kind} style={{ width: `${(100 * value) / positive}%`, background: TERMS[kind][1] }} title={`${TERMS[kind][0]} ${signed(value)}`} />)}
      </span>
      <span class="value">{negative < -0.005 ? signed(negative) : ""}</span>
    </>
  );
}

function Legend({ shares, head }) {
  return (
    <dl class="legend">
      {kinds(shares).map((kind) => (
        <div key={kind} title={TERMS[kind][2]}>
          <dt>
            <i class="swatch" style={{ background: TERMS[kind][1] }} />
            {TERMS[kind][0]}
          </dt>
          <dd class="value">{signed(of(shares[kind], head))}</dd>
        </div>
      ))}
    </dl>
  );
}

export function Shares({ model, layer, head, onChoose }) {
  const { shares } = layer;
  return (
    <section class="panel shares">
      <h3>
        Logit variance <small title="shares of the variance of the logits over queries and keys">{shares && `approximate: from ${model.num_crops} crops`}</small>
      </h3>
      {!shares && <p class="hint">Not known: {layer.why_no_shares ?? "they were not measured"}.</p>}
      {shares &&
        ["mean", ...names(layer)].map((each) => (
          <HeadRow key={each} head={each} chosen={each === head} onChoose={onChoose} value={kinds(shares).map((kind) => `${TERMS[kind][0]} ${signed(of(shares[kind], each))}`).join(", ")}>
            <Stack shares={shares} head={each} />
          </HeadRow>
        ))}
      {shares && <p class="hint">Below: {headName(head)}. Beside bars: negatives</p>}
      {shares && <Legend shares={shares} head={head} />}
    </section>
  );
}
