import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { modeOf } from "./attention.js";
import { Choice, Head, Layer, ModeNote, Modes, Subjects } from "./Controls.jsx";
import { layerOf, numLayers } from "./data.js";
import { Help } from "./Help.jsx";
import { asked } from "./keys.js";
import { change, clampHead, fromHash, toHash } from "./state.js";
import { sameToken } from "./tokens.js";
import { View } from "./View.jsx";

const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;

/** State that the address tells and follows; written a little later, for browsers limit how often it may change. */
function useAddress(data) {
  const [state, setState] = useState(() => fromHash(data, location.hash));
  useEffect(() => {
    const timer = setTimeout(() => history.replaceState(null, "", toHash(state)), 100);
    return () => clearTimeout(timer);
  }, [state]);
  useEffect(() => {
    // the event's own address: the one written above may have taken its place since
    const follow = ({ newURL }) => setState(fromHash(data, new URL(newURL).hash));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return [state, (next) => setState((now) => change(data, now, next))];
}

/** Listens on the whole page, so that keys work wherever the focus is; with the newest state, hence no list of needs. */
function useKeys(layer, state, onChange, onOther) {
  useLayoutEffect(() => {
    const listen = (event) => {
      const next = asked(event, layer, state);
      if (!next) return onOther(event);
      event.preventDefault();
      return onChange(next);
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  });
}

function useTheme() {
  const [theme, setTheme] = useState(() => (dark() ? "dark" : "light"));
  useLayoutEffect(() => void (document.documentElement.dataset.theme = theme), [theme]);
  return [theme, () => setTheme(theme === "dark" ? "light" : "dark")];
}

export function App({ data }) {
  const [state, onChange] = useAddress(data);
  const [pointed, setPointed] = useState(null); // {token, layer, reads}: under the pointer, in the view it is over
  const [tool, setTool] = useState("query");
  const [together, setTogether] = useState(false);
  const [opacity, setOpacity] = useState(0.65);
  const [help, setHelp] = useState(false);
  const [theme, toggleTheme] = useTheme();

  const first = layerOf(data, state.subject, state.layer);
  const reads = (event) => (tool === "read") !== event.shiftKey;
  useKeys(first, state, onChange, ({ key }) => {
    if (key === "?") setHelp(!help);
    if (key === "r") setTool(tool === "read" ? "query" : "read");
  });

  const subjects = [state.subject, state.compare].filter((subject) => subject !== null);
  const view = (subject, index) => {
    const layer = layerOf(data, subject, Math.min(state.layer, numLayers(data, subject) - 1));
    const chosen = sameToken(first, state.query, layer);
    const under = pointed && sameToken(pointed.layer, pointed.token, layer);
    const shown = pointed?.reads ? { query: chosen, read: under } : { query: under ?? chosen, read: null };
    const point = (token, event) => setPointed(token === null ? null : { token, layer, reads: reads(event) });
    const choose = (token, event) => {
      if (event.pointerType === "touch" && reads(event)) return point(token, event);
      setPointed(null);
      return onChange({ query: sameToken(layer, token, first) });
    };
    return <View key={index} {...{ data, subject, layer, chosen, opacity, together }} {...shown} head={clampHead(layer, state.head)} mode={state.mode} all={state.all} onOpacity={setOpacity} onPoint={point} onChoose={choose} onChange={onChange} />;
  };
  const tools = [
    { key: "query", label: "query", title: "The mouse previews a query where it hovers (r, or hold Shift: reads)" },
    { key: "read", label: "weight", title: "The mouse tells the weight and the logit of the token it hovers (r, or hold Shift: moves the query)" },
  ];
  return (
    <>
      <header class="top">
        <h1>posenc <span>explorer</span></h1>
        <Subjects data={data} {...state} onChange={onChange} />
        <span class="space" />
        <button onClick={toggleTheme} aria-label="dark or light page" title="dark or light page" data-theme-toggle>{theme === "dark" ? "☀" : "☾"}</button>
        <button onClick={() => setHelp(true)} aria-label="keys" title="keys (?)">?</button>
      </header>
      <div class="controls">
        <Modes layer={first} mode={modeOf(first, state.mode)} onChange={onChange} />
        <Layer data={data} subject={state.subject} layer={first} onChange={onChange} />
        <Head layer={first} head={state.head} onChange={onChange} />
        <Choice name="maps" options={[{ key: false, label: "one layer" }, { key: true, label: "all layers", title: "every head of every layer (a)" }]} value={state.all} onChoose={(all) => onChange({ all })} />
        <span class="field">Scale <Choice name="color scale" options={[{ key: false, label: "own", title: "each map's colors end at its own largest weight" }, { key: true, label: "shared", title: "all maps' colors end at the largest weight of the chosen layer's heads" }]} value={together} onChoose={setTogether} /></span>
        <span class="field">Pointer <Choice name="pointer" options={tools} value={tool} onChoose={setTool} /></span>
      </div>
      <ModeNote layer={first} mode={modeOf(first, state.mode)} />
      <main class={subjects.length > 1 ? "two" : ""}>{subjects.map(view)}</main>
      <Help open={help} version={data.version} onClose={() => setHelp(false)} />
    </>
  );
}
