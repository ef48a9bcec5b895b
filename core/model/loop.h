/*
 * loop.h: the layer loop of a model: its parameters, what enters each pass, and how many passes there are.
 */
#ifndef CHM_LOOP_H
#define CHM_LOOP_H

#include "model/model.h"

/* Declares the loop's vectors by way of `add` when the card has a loop. */
int chm_loop_declare(chm_model *m, chm_param *(*add)(void *user, const char *name, chm_init init), void *user);
/* The largest decay of a column, below 1. */
double chm_loop_radius(const chm_loop *loop);
/* Whether the gradient goes through a pass (from 1): through the first, which alone writes, and the later half. */
bool chm_loop_kept(int pass, int passes, bool truncate);
/* The layers of the loop, run by `layers` on the rows of a pass. NULL: chm_context_status() */
chm_tensor *chm_loop_forward(const chm_model *m, chm_context *c, chm_tensor *x, chm_depth *depth,
                             chm_tensor *(*layers)(const chm_model *m, chm_context *c, int pass, chm_tensor *x));

#endif
