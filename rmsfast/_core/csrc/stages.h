/* All stages for numbers of one type, of which isa.h defines the names. */

static int NAME(form)(rmsfast_scalars *scalars, const rmsfast_settings *s, double grad_scale, double clip_factor,
                      double correction)
{
    const int lr_last = s->momentum != 0 && !s->lr_in_momentum;

    scalars->NAME(of) = (SCALARS){
        .changes_grad = grad_scale != 1 || clip_factor != 1 || s->clip_value != INFINITY || s->maximize,
        .scale = (REAL)(s->maximize ? -grad_scale : grad_scale),
        .factor = (REAL)clip_factor,
        .limit = (REAL)s->clip_value,
        .decays = s->weight_decay == 0 ? 0 : s->decoupled_weight_decay ? RMSFAST_DECOUPLED : RMSFAST_INTO_GRAD,
        .decay = (REAL)(s->decoupled_weight_decay ? s->lr * s->weight_decay : s->weight_decay),
        .beta = (REAL)s->beta,
        .one_minus_beta = (REAL)(1 - s->beta),
        .correction = (REAL)correction,
        .lr_of_quotient = lr_last ? 1 : (REAL)s->lr,
        .eps_inside = s->eps_inside_sqrt ? (REAL)s->eps : 0,
        .eps_outside = s->eps_inside_sqrt ? 0 : (REAL)s->eps,
        .mu = (REAL)s->momentum,
        .lr_of_step = lr_last ? (REAL)s->lr : 1,
        .weight_limit = (REAL)s->clip_weights,
        .ema_decay = (REAL)s->ema_decay,
        .one_minus_ema_decay = (REAL)(1 - s->ema_decay),
    };
    return scalars->NAME(of).changes_grad || scalars->NAME(of).decays || correction != 1 || s->eps_inside_sqrt;
}

#include "measure.h"
#include "settle.h"
#include "update.h"

#undef REAL
#undef SCALARS
#undef ABS
#undef LARGEST
#undef NAME
