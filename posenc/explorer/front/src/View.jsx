import { useMemo } from "preact/hooks";
import { attend, largestPatch, modeOf, pick, whyNot } from "./attention.js";
import { layerOf } from "./data.js";
import { Heads, Matrix } from "./Maps.jsx";
import { ColorBar } from "./ColorBar.jsx";
import { Depth, Distance, Shares } from "./Panels.jsx";
import { Prefix } from "./Prefix.jsx";
import { Readout, Token } from "./Readout.jsx";
import { Stage } from "./Stage.jsx";

const prefixOf = ({ prefix: [first, ...others] }) => (first ? ` + ${first}${others.length ? ` and ${others.length} more` : ""}` : "");

function Heading({ model, image, layer }) {
  const random = /random/i.test(model.weights);
  return (
    <header>
      <h2>{image.name}</h2>
      <p>
        {model.name} · <span class={random ? "badge warning" : "badge"} data-random={random}>{model.weights}</span> · {layer.height} × {layer.width} patches
        {prefixOf(layer)}
      </p>
      {model.notes.map((note) => (
        <p class="hint" key={note}>{note}</p>
      ))}
    </header>
  );
}

/**
 * One subject: its image, maps and numbers. Tokens given and told are those of this view's own layer.
 */
export function View({ data, subject, layer, head, mode: asked, query, chosen, read, all, opacity, together, onOpacity, onPoint, onChoose, onChange }) {
  const { image, model } = data.subjects[subject];
  const mode = modeOf(layer, asked);
  const attention = useMemo(() => attend(layer, mode, query), [layer, mode, query]);
  const weights = pick(attention, head);
  const shared = together ? Math.max(...attention.heads.map((each) => largestPatch(layer, each))) : null;
  const largest = shared ?? largestPatch(layer, weights);
  const tokens = { layer, weights, largest, query, read, onPoint, onChoose };
  const maps = { data, subject, image, layer, head, mode, query, attention, shared, onChoose: onChange };
  const reason = whyNot(layer, asked);
  return (
    <article class="view" data-subject={subject} data-layer={layer.index} data-head={head} data-mode={mode} data-query={query}>
      <Heading model={data.models[model]} image={image} layer={layer} />
      <div class="columns">
        <div class="look">
          <Stage image={image} chosen={chosen} opacity={opacity} {...tokens} />
          <Prefix {...tokens} />
          <ColorBar largest={largest} tokens={layer.tokens} opacity={opacity} onOpacity={onOpacity} />
          {reason && <p class="hint">Total is shown, for there is no {asked}: {reason}.</p>}
          <Readout {...{ layer, mode, head, query, weights }} preview={chosen !== query} />
        </div>
        <div class="maps">
          <section class="panel">
            <h3>{all ? "All layers and heads" : `Heads of ${layer.name}`} <small>{mode}</small></h3>
            {all ? <Matrix {...maps} /> : <Heads {...maps} />}
          </section>
          <Token {...{ layer, head, query, read, weights }} />
          <Depth {...{ data, subject, layer, head }} onChoose={onChange} />
        </div>
        <div class="numbers">
          <Distance {...{ data, subject, layer, head }} onChoose={onChange} />
          <Shares model={data.models[model]} layer={layer} head={head} onChoose={onChange} />
        </div>
      </div>
    </article>
  );
}
