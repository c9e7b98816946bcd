import { MEANINGS, MODES, whyNot } from "./attention.js";
import { numLayers } from "./data.js";

/** A row of buttons of which one is on. */
export function Choice({ name, options, value, onChoose }) {
  return (
    <div class="choice" role="group" aria-label={name}>
      {options.map(({ key, label = key, title, disabled }) => (
        <button key={key} aria-pressed={key === value} disabled={disabled} title={title} data-choice={key} onClick={() => onChoose(key)}>
          {label}
        </button>
      ))}
    </div>
  );
}

const labelOf = (data, { model, image }) => `${image.name} · ${data.models[model].name}`;

export function Subjects({ data, subject, compare, onChange }) {
  const options = data.subjects.map((each, index) => (
    <option key={index} value={index}>{labelOf(data, each)}</option>
  ));
  return (
    <>
      <label>
        Show <select name="subject" value={subject} onChange={(event) => onChange({ subject: Number(event.target.value) })}>{options}</select>
      </label>
      {data.subjects.length > 1 && (
        <label>
          Compare with{" "}
          <select name="compare" value={compare ?? ""} onChange={(event) => onChange({ compare: event.target.value === "" ? null : Number(event.target.value) })}>
            <option value="">nothing</option>
            {options}
          </select>
        </label>
      )}
    </>
  );
}

export function Modes({ layer, mode, onChange }) {
  const options = MODES.map((key) => {
    const reason = whyNot(layer, key);
    return { key, disabled: Boolean(reason), title: reason ? `Not here: ${reason}` : `${key}: ${MEANINGS[key]}` };
  });
  return <Choice name="mode" options={options} value={mode} onChoose={(key) => onChange({ mode: key })} />;
}

/** Why modes are missing, one reason for all that it keeps away; else what the chosen one shows. */
export function ModeNote({ layer, mode }) {
  const missing = new Map();
  for (const each of MODES) {
    const reason = whyNot(layer, each);
    if (reason) missing.set(reason, [...(missing.get(reason) ?? []), each]);
  }
  return (
    <p class="hint note">
      <b>{mode}</b>: {MEANINGS[mode]}.{" "}
      {[...missing].map(([reason, modes]) => (
        <span key={reason} class="reason">Not here: {modes.join(", ")} ({reason}). </span>
      ))}
    </p>
  );
}

export function Layer({ data, subject, layer, onChange }) {
  const last = numLayers(data, subject) - 1;
  return (
    <label class="layer">
      Layer <input type="range" name="layer" min="0" max={last} value={layer.index} onInput={(event) => onChange({ layer: Number(event.target.value) })} aria-valuetext={`${layer.index}: ${layer.name}`} />
      <output>{layer.index} <small>of 0–{last}</small></output>
    </label>
  );
}

export function Head({ layer, head, onChange }) {
  return (
    <label>
      Head{" "}
      <select name="head" value={head} onChange={(event) => onChange({ head: event.target.value === "mean" ? "mean" : Number(event.target.value) })}>
        <option value="mean">mean</option>
        {[...Array(layer.heads).keys()].map((each) => (
          <option key={each} value={each}>{each}</option>
        ))}
      </select>
    </label>
  );
}
