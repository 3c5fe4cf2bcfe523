// The page: one state, one run of it, and the views that show both. Every change goes through `change`.

import { gradientAt, run } from "./run.js";
import { RACERS, change, fromAddress, settingsOf, speak, toAddress } from "./state.js";
import { createCharts, createLoss } from "./view-charts.js";
import { createPlayer, createRacers, createSettings } from "./view-controls.js";
import { createFormula } from "./view-formula.js";
import { createMap } from "./view-map.js";
import { copyText, html, say } from "./view-parts.js";
import { createPython } from "./view-python.js";
import { STORIES } from "./stories.js";

const find = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let { state, problems } = fromAddress(location.hash);
let result = run(state);
let playing = false;
let views = [];
let map = null;

// ---- State ----

const RERUN = [
    "landscape",
    "angle",
    "x1",
    "x2",
    "steps",
    "spikes",
    "spike",
    "rates",
    ...Object.keys(settingsOf(state)),
];

function show(next) {
    const same = RERUN.every((name) => next[name] === state[name]);
    state = next;
    if (!same) result = run(state);
    render();
}

let asked = false;

/** Draw everything once before the next frame, however many changes there are until then. */
function render() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
        asked = false;
        const model = { state, result, playing };
        for (const view of views) view(model);
    });
    later(writeAddress);
}

let timer = 0;
function later(work) {
    clearTimeout(timer);
    timer = setTimeout(work, 150);
}

function writeAddress() {
    const address = toAddress(state);
    if (`#${address}` !== location.hash && (address || location.hash)) history.replaceState(null, "", `#${address}`);
}

window.addEventListener("hashchange", readAddress);
window.addEventListener("pagehide", writeAddress); // so that a reload right after a change does not lose it

function readAddress() {
    pause();
    if (document.activeElement?.matches("input[type=text]")) document.activeElement.blur(); // and its fault is gone
    const read = fromAddress(location.hash);
    problems = read.problems;
    showProblems();
    result = run((state = read.state));
    render();
}

function showProblems() {
    const box = find("problems");
    box.replaceChildren();
    if (!problems.length) return;
    box.append(
        html("p", { text: "The address says something that this page does not understand. It was left out:" }),
        html("ul", {}, ...problems.map((text) => html("li", { text }))),
    );
}

const OWN = "These are your own settings. They are in the address, so that you can send it to somebody.";

/** Mark the story that the page shows, whatever the step, and say what one sees there. */
function showStory() {
    const address = toAddress({ ...state, step: state.steps, speed: 5 });
    for (const link of find("stories").children) {
        const current = link.getAttribute("href") === `#${address}`;
        if (current) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
    }
    const text = STORIES.find((story) => story.address === address)?.text ?? OWN;
    if (find("story").textContent !== text) find("story").textContent = text;
}

// ---- Time ----

let began = 0;
let first = 0;

function togglePlay() {
    if (playing) return pause();
    if (state.step >= state.steps) show(change(state, { step: 0 }));
    playing = true;
    [began, first] = [performance.now(), state.step];
    render();
    requestAnimationFrame(tick);
}

function pause() {
    playing = false;
    render();
}

function tick(now) {
    if (!playing) return;
    const at = Math.min(first + (Math.max(0, now - began) / 1000) * state.speed, state.steps);
    if (Math.floor(at) !== state.step) show(change(state, { step: Math.floor(at) }));
    if (!calm.matches) map.draw(at); // where motion is not wanted, the heads go from step to step
    if (at >= state.steps) {
        pause();
        announce();
    } else requestAnimationFrame(tick);
}

function goTo(step, relative = false) {
    const aim = Math.min(Math.max(relative ? state.step + step : step, 0), state.steps);
    playing = false;
    show(change(state, { step: aim }));
    later(() => {
        writeAddress();
        announce();
    });
}

const announce = () => {
    const { losses } = result.racers.rmsprop;
    find("status").textContent = `Step ${state.step}. Loss of RMSProp: ${say(losses[state.step] ?? Infinity)}.`;
};

// ---- What the controls do ----

const actions = {
    current: () => state,
    togglePlay,
    goTo,
    change(values) {
        const next = change(state, values);
        if (values.speed) [began, first] = [performance.now(), state.step];
        if (values.landscape || values.steps) playing = false;
        show(next);
    },
    speak: (name) => show(speak(state, name)),
    setRate: (name, rate) => show(change(state, { rates: { ...state.rates, [name]: rate } })),
    toggleRacer: (name, shown) =>
        show(
            change(state, {
                hide: Object.keys(RACERS).filter((each) => (each === name ? !shown : state.hide.includes(each))),
            }),
        ),
    /** Put a spike into the next gradient; at the end of the run, into one after a third of it. */
    addSpike() {
        const ended = state.step === state.steps;
        const step = ended ? Math.round(state.steps / 3) : state.step + 1;
        show(change(state, { spikes: [...state.spikes, step] }));
        find("status").textContent = `Step ${step} has a spike of ${say(state.spike)} in its gradient.`;
    },
};

// ---- Colours: as the system, or as chosen here ----

const THEMES = { "": "Auto", light: "Light", dark: "Dark" };
const NAMES = { "": "as the system", light: "light", dark: "dark" };
let theme = "";
try {
    theme = localStorage.getItem("rmsfast-colours") ?? "";
} catch {
    // A browser that keeps nothing shows the system's colours.
}
function setTheme(name) {
    theme = name in THEMES ? name : "";
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    find("theme").textContent = THEMES[theme];
    find("theme").setAttribute("aria-label", `Colours: ${NAMES[theme]}`);
    try {
        localStorage.setItem("rmsfast-colours", theme);
    } catch {
        // The choice lasts as long as the page.
    }
    render();
}
find("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    setTheme(names[(names.indexOf(theme) + 1) % names.length]);
});

const copy = find("copy-link");
copy.hidden = !navigator.clipboard;
copy.addEventListener("click", () => {
    writeAddress();
    copyText(copy, location.href);
});

// ---- Begin ----

for (const { title, address } of STORIES) {
    const onclick = (event) => {
        event.preventDefault(); // so that `#` does not scroll to the top
        history.pushState(null, "", `#${address}`);
        readAddress();
    };
    find("stories").append(html("a", { href: `#${address}`, text: title, onclick }));
}
document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address belongs to the state
    document.querySelector(".handle").focus();
});
const settings = createSettings(find("settings"), actions);
const player = createPlayer(find("player"), actions);
const racers = createRacers(find("racers"), actions);
const loss = createLoss(find("loss"), actions);
const charts = createCharts(find("charts"), actions);
const formula = createFormula(find("formula"));
const python = createPython(find("code"), find("python-text"));
map = createMap(find("map-view"), find("map-text"), actions);

views = [
    settings.render,
    player.render,
    map.render,
    racers.render,
    loss.render,
    charts.render,
    python.render,
    (model) => {
        const { path } = result.racers.rmsprop;
        const x = path[state.step - 1];
        formula.render(model, x && gradientAt(result.terrain, state, x, state.step));
        showStory();
    },
];
find("starting").remove();
showProblems();
setTheme(theme);
