// Runs the optimizers, dialects and addresses of docs/playground in Node, for test_optimizers.py.
//
// Reads a list of requests as JSON and writes the list of answers. Arrays of doubles travel as hexadecimal digits, 16 a
// number, so that each bit arrives.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const from = (name) => import(pathToFileURL(`${process.argv[2]}/${name}`));
const { DIALECTS, asDialect, dialect } = await from("dialects.js");
const { AdaDelta, AdaGrad, Adam, Momentum, RMSProp, SETTINGS, SGD, power, readSettings } = await from("optimizers.js");
const { LANDSCAPES, Terrain } = await from("landscapes.js");
const { FIELDS, change, defaults, fromAddress, initial, speak, toAddress } = await from("state.js");
const { pythonPrint } = await from("view-python.js");
const { STORIES } = await from("stories.js");

const RULES = { AdaDelta, AdaGrad, Adam, Momentum, SGD };

function decode(text) {
    const bytes = Buffer.from(text, "hex");
    return Float64Array.from({ length: bytes.length / 8 }, (_, i) => bytes.readDoubleBE(8 * i));
}

function encode(numbers) {
    const bytes = Buffer.alloc(8 * numbers.length);
    numbers.forEach((x, i) => bytes.writeDoubleBE(x, 8 * i));
    return bytes.toString("hex");
}

const ANSWERS = {
    /** Steps of RMSProp: its state after each step, "refused", or null for a step that it skipped. */
    rmsprop({ settings, w, gradients }) {
        const optimizer = new RMSProp(decode(w), settings);
        return gradients.map(([g, scale]) => {
            try {
                if (optimizer.step(decode(g), scale) === null) return null;
            } catch {
                return "refused";
            }
            const { w, v, m, b, a } = optimizer;
            const arrays = { param: w, square_avg: v, grad_avg: m, momentum_buffer: b, ema: a };
            return Object.fromEntries(
                Object.entries(arrays)
                    .filter(([, x]) => x)
                    .map(([name, x]) => [name, encode(x)]),
            );
        });
    },

    /** The error that settings cause, or null. */
    refused({ settings }) {
        try {
            readSettings(settings);
            return null;
        } catch (error) {
            return error.message;
        }
    },

    settings: () => Object.keys(SETTINGS),
    power: ({ pairs }) => encode(pairs.map(([beta, t]) => power(beta, t))),
    dialects: () =>
        Object.fromEntries(
            Object.entries(DIALECTS).map(([name, { takes }]) => [
                name,
                Object.values(takes).map(([argument]) => argument),
            ]),
        ),

    /** A dialect's settings; and the arguments that are read back from them. */
    dialect({ name, args }) {
        const settings = dialect(name, args);
        return { settings, back: asDialect(name, { ...readDefaults(), ...settings }, readDefaults()) };
    },

    /** The path of one of the other five. */
    other({ rule, options, w, gradients }) {
        const optimizer = new RULES[rule](decode(w), options);
        return gradients.map((g) => {
            optimizer.step(decode(g));
            return encode(optimizer.w);
        });
    },

    landscapes: () => Object.keys(LANDSCAPES),

    /** Loss and gradient at some points, and the gradient as Python. */
    terrain({ name, angle, points }) {
        const terrain = new Terrain(name, angle);
        const x = points.map(decode);
        return {
            python: terrain.python(),
            losses: x.map((point, step) => terrain.loss(Array.from(point), step)),
            gradients: x.map((point, step) => encode(terrain.gradient(Array.from(point), step))),
            minima: terrain.minima(0).map((point) => terrain.loss(point, 0)),
        };
    },

    /** What an address says, and how the page writes the same. */
    address({ text }) {
        const { state, problems } = fromAddress(text);
        return { state, problems, text: toAddress(state) };
    },

    fields: () => Object.keys(FIELDS),
    initial: ({ landscape }) => initial(landscape),
    speak: ({ text, name }) => toAddress(speak(fromAddress(text).state, name)),

    change({ text, values }) {
        try {
            return toAddress(change(fromAddress(text).state, values));
        } catch (error) {
            return { refused: error.message };
        }
    },

    stories: () => STORIES,
    print: ({ numbers }) => Array.from(decode(numbers), pythonPrint),
};

const readDefaults = () => ({
    ...Object.fromEntries(Object.entries(SETTINGS).map(([name, kind]) => [name, kind.default])),
    ...defaults(),
});
const requests = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(requests.map(([what, request]) => ANSWERS[what](request ?? {}))));
