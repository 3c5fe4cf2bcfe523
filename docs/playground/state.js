// The state of the page, and how the address holds it: `#landscape=saddle&lr=0.2&centered=1`. No page in here.
//
// The address has only what differs from the defaults, under the names that rmsfast has for its settings.

import { DIALECTS, asDialect, dialect } from "./dialects.js";
import { LANDSCAPES } from "./landscapes.js";
import { SETTINGS, readSetting, readSettings } from "./optimizers.js";

// The settings of RMSProp that have a control on the page.
export const RMSPROP = [
    "lr",
    "beta",
    "eps",
    "momentum",
    "nesterov",
    "centered",
    "bias_correction",
    "eps_inside_sqrt",
    "lr_in_momentum",
    "initial_square_avg",
    "clip_value",
];

export const RACERS = {
    rmsprop: { title: "RMSProp" },
    adam: { title: "Adam", rate: "η", note: "β 0.9, 0.999" },
    adadelta: { title: "AdaDelta", rate: "ε", note: "ρ 0.9, no rate" },
    adagrad: { title: "AdaGrad", rate: "η", note: "sums all g²" },
    momentum: { title: "Momentum", rate: "η", note: "μ 0.9" },
    sgd: { title: "SGD", rate: "η", note: "no memory" },
};
export const SPIKES = [10, 1000, 1e6];
export const SPEEDS = [2, 5, 10, 20, 60];
export const MOST_STEPS = 300;

// Other frameworks' names, which somebody may try in the address.
const FOREIGN = {
    learning_rate: "lr",
    alpha: "beta",
    rho: "beta",
    decay: "beta",
    gamma: "beta",
    gamma1: "beta",
    gamma2: "momentum",
    epsilon: "eps",
    eps_in_sqrt: "eps_inside_sqrt",
    initial_scale: "initial_square_avg",
    clipvalue: "clip_value",
    clip_gradient: "clip_value",
};

export function readNumber(name, text, low, high, whole = false) {
    const value = text.trim() === "" ? NaN : Number(text.replace("−", "-"));
    const fits = Number.isFinite(value) && value >= low && value <= high;
    if (fits && (!whole || Number.isInteger(value))) return value + 0; // −0 becomes 0
    const range = high < Infinity ? `from ${low} to ${high}` : `≥ ${low}`;
    throw new Error(`${name}: ${text.trim() || "nothing"}, expected a ${whole ? "whole " : ""}number ${range}`);
}

/** A number as the address and a text field have it. A plus sign would be read as a space. */
export const writeNumber = (value) => (value === null ? "none" : String(value).replace("+", ""));

function readSwitch(name, text) {
    if (["1", "true"].includes(text)) return true;
    if (["0", "false"].includes(text)) return false;
    throw new Error(`${name}: ${text}, expected 1 or 0`);
}

function readOne(name, text, names) {
    if (names.includes(text)) return text;
    throw new Error(`${name}: ${text}, expected one of ${names.join(", ")}`);
}

const number = (low, high, whole) => ({
    read: (name, text) => readNumber(name, text, low, high, whole),
    write: writeNumber,
});

function setting(name) {
    if (SETTINGS[name].values) return { read: readSwitch, write: (value) => (value ? "1" : "0") };
    return {
        read: (_, text) =>
            readSetting(name, SETTINGS[name].optional && text === "none" ? null : readNumber(name, text, 0, Infinity)),
        write: writeNumber,
    };
}

const list = (read) => ({
    read: (name, text) => (text === "" ? [] : text.split(",").map((each) => read(name, each))),
    write: (values) => values.join(","),
});

// How each part of the state is written, in the order of the address.
export const FIELDS = {
    landscape: { read: (name, text) => readOne(name, text, Object.keys(LANDSCAPES)), write: String },
    angle: number(0, 180),
    x1: number(-100, 100),
    x2: number(-100, 100),
    dialect: { read: (name, text) => readOne(name, text, Object.keys(DIALECTS)), write: String },
    ...Object.fromEntries(RMSPROP.map((name) => [name, setting(name)])),
    steps: number(10, MOST_STEPS, true),
    step: number(0, MOST_STEPS, true),
    spikes: list((name, text) => readNumber(name, text, 1, MOST_STEPS, true)),
    spike: { read: (name, text) => Number(readOne(name, text, SPIKES.map(String))), write: String },
    speed: { read: (name, text) => Number(readOne(name, text, SPEEDS.map(String))), write: String },
    hide: list((name, text) => readOne(name, text, Object.keys(RACERS))),
};
const rateField = { read: (name, text) => readNumber(name, text, 0, 1e6), write: writeNumber };

/** The state that a landscape begins with. */
export function initial(landscape = "ravine") {
    const { start, lr, steps, rates } = LANDSCAPES[landscape];
    const settings = Object.fromEntries(RMSPROP.map((name) => [name, SETTINGS[name].default]));
    return {
        landscape,
        angle: 0,
        x1: start[0],
        x2: start[1],
        dialect: "",
        ...settings,
        lr,
        steps,
        step: steps,
        spikes: [],
        spike: 1000,
        speed: 5,
        hide: [],
        rates: { ...rates },
    };
}

/** The settings with which RMSProp runs. Without a momentum, nesterov has no effect, and is left out. */
export function settingsOf(state) {
    const settings = Object.fromEntries(RMSPROP.map((name) => [name, state[name]]));
    settings.nesterov = settings.nesterov && settings.momentum !== 0;
    return settings;
}

/**
 * Return the state with some values changed, or throw an Error that says what was expected.
 *
 * Another landscape brings its own start, steps and rates.
 */
export function change(state, values) {
    let next = { ...state, ...values };
    if (values.landscape && values.landscape !== state.landscape) {
        const { x1, x2, lr, steps, step, rates } = initial(values.landscape);
        next = { ...state, x1, x2, lr, steps, step, rates, spikes: [], ...values };
    }
    if (next.dialect && asDialect(next.dialect, settingsOf(next), defaults()) === null) next.dialect = "";
    const stayed = state.step === state.steps && values.step === undefined; // who is at the end, stays at the end
    next.step = stayed ? next.steps : Math.min(next.step, next.steps);
    if (values.spikes) next.spikes = [...new Set(next.spikes)].sort((a, b) => a - b);
    readSettings(settingsOf(next));
    return next;
}

export const defaults = () => Object.fromEntries(RMSPROP.map((name) => [name, SETTINGS[name].default]));

/** Return the state in a dialect: its decay, ε and switches. Rate, momentum and centering stay where it has them. */
export function speak(state, name) {
    return change(state, { dialect: name, ...(name && settingsOfDialect({ ...state, dialect: name })) });
}

/** The settings of the state's dialect, with the state's rate, and its momentum and centering where it takes them. */
function settingsOfDialect(state) {
    const { takes } = DIALECTS[state.dialect];
    const args = {};
    for (const name of ["lr", "momentum", "centered"]) {
        if (takes[name] && !(name === "momentum" && state.dialect === "mxnet")) args[takes[name][0]] = state[name];
    }
    const settings = { ...defaults(), ...dialect(state.dialect, args) };
    return Object.fromEntries(RMSPROP.map((name) => [name, settings[name]]));
}

/** What the names mean that an address leaves out. */
function base(state) {
    const start = initial(state.landscape);
    if (!state.dialect) return { ...start, step: state.steps };
    const { momentum, centered } = start;
    const theirs = settingsOfDialect({ ...start, dialect: state.dialect });
    return { ...start, ...theirs, lr: start.lr, momentum, centered, step: state.steps };
}

/** Return the part of the address after `#`. */
export function toAddress(state) {
    const usual = base(state);
    const parts = [];
    const add = (name, text) => parts.push(`${name}=${text}`);
    for (const [name, field] of Object.entries(FIELDS)) {
        const text = field.write(state[name]);
        const expected = name === "landscape" ? "ravine" : name === "dialect" ? "" : field.write(usual[name]);
        if (text !== expected) add(name, text);
    }
    for (const [racer, rate] of Object.entries(state.rates)) {
        if (rate !== usual.rates[racer]) add(`rate_${racer}`, rateField.write(rate));
    }
    return parts.join("&");
}

/** Return the state that an address holds, and what was wrong with it: each fault as a sentence, its value left out. */
export function fromAddress(text) {
    const problems = [];
    const given = {};
    const rates = {};
    for (const [name, value] of new URLSearchParams(text.replace(/^#/, ""))) {
        const racer = name.replace(/^rate_/, "");
        try {
            if (Object.hasOwn(FIELDS, name)) given[name] = FIELDS[name].read(name, value);
            else if (racer !== name && RACERS[racer]?.rate) rates[racer] = rateField.read(name, value);
            else if (Object.hasOwn(FOREIGN, name))
                throw new Error(`${name}: another framework's name, expected ${FOREIGN[name]}`);
            else throw new Error(`${name}: no such name, expected one of ${Object.keys(FIELDS).join(", ")}`);
        } catch (error) {
            problems.push(error.message);
        }
    }
    const start = initial(given.landscape);
    const { steps = start.steps, step = steps, dialect: name = "", ...others } = given;
    const { lr = start.lr, momentum = 0, centered = false } = others;
    const state = { ...start, steps, step: Math.min(step, steps), rates: { ...start.rates, ...rates } };
    try {
        const theirs = name ? settingsOfDialect({ ...state, dialect: name, lr, momentum, centered }) : {};
        return { state: change(state, { ...theirs, ...others, dialect: name, step: state.step }), problems };
    } catch (error) {
        problems.push(error.message);
        return { state, problems };
    }
}
