// All six optimizers from one start, step by step: what the page draws. No page in here.

import { AdaDelta, AdaGrad, Adam, Momentum, RMSProp, SGD } from "./optimizers.js";
import { Terrain } from "./landscapes.js";
import { settingsOf } from "./state.js";

const MAKERS = {
    sgd: (w, lr) => new SGD(w, { lr }),
    momentum: (w, lr) => new Momentum(w, { lr }),
    adagrad: (w, lr) => new AdaGrad(w, { lr }),
    adadelta: (w, eps) => new AdaDelta(w, { eps }),
    adam: (w, lr) => new Adam(w, { lr }),
};

/**
 * Run the optimizers of a state. Returns the terrain and, for each racer, its path and its losses.
 *
 * `path[k]` and `losses[k]` are those after k steps; `records[k]` is what RMSProp computed in step k, from 1 on.
 * `lost` is the step whose result is not finite, or null.
 */
export function run(state) {
    const terrain = new Terrain(state.landscape, state.angle);
    const start = [state.x1, state.x2];
    const racers = {};
    for (const [name, make] of Object.entries(MAKERS)) {
        racers[name] = walk(make(start, state.rates[name]), terrain, state);
    }
    racers.rmsprop = walk(new RMSProp(start, settingsOf(state)), terrain, state);
    return { terrain, racers };
}

/** The gradient in step number `step` (1 for the first), with the spike, if there is one. */
export function gradientAt(terrain, state, x, step) {
    const g = terrain.gradient(x, step - 1);
    return state.spikes.includes(step) ? g.map((each) => each + state.spike) : g;
}

function walk(optimizer, terrain, state) {
    const path = [[state.x1, state.x2]];
    const losses = [terrain.loss(path[0], 0)];
    const records = [null];
    for (let step = 1; step <= state.steps; step++) {
        records.push(optimizer.step(gradientAt(terrain, state, path[step - 1], step)));
        const x = Array.from(optimizer.w);
        const loss = terrain.loss(x, step);
        if (!x.every(Number.isFinite) || !Number.isFinite(loss)) return { path, losses, records, lost: step };
        path.push(x);
        losses.push(loss);
    }
    return { path, losses, records, lost: null };
}
