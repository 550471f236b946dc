/*
 * Lets a WASI guest make spans, logs and metrics, in the trace of its container, by
 * the functions that containerd-shim-wazero provides to it.
 *
 *	observe_span_enter("handle request");
 *	observe_span_tags("path:/");
 *	observe_log(OBSERVE_INFO, "half way");
 *	observe_metric("requests:1|c|#code:200");
 *	observe_span_exit();
 *
 * Nothing here fails or waits. Without tracing the calls come to nothing, and so do
 * those beyond the bounds: see docs/telemetry.md, "Spans of a guest".
 */
#ifndef OBSERVE_H
#define OBSERVE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How much a log matters, from the most. */
enum observe_level {
	OBSERVE_ERROR = 1,
	OBSERVE_WARN,
	OBSERVE_INFO,
	OBSERVE_DEBUG,
	OBSERVE_TRACE
};

#define OBSERVE_IMPORT(name) __attribute__((import_module("dylibso:observe/api"), import_name(name)))

/* The functions of the host. Texts are UTF-8, and need no NUL at their end. */
OBSERVE_IMPORT("span-enter") void observe_host_span_enter(const char *name, size_t length);
OBSERVE_IMPORT("span-exit") void observe_host_span_exit(void);
OBSERVE_IMPORT("span-tags") void observe_host_span_tags(const char *tags, size_t length);
OBSERVE_IMPORT("log") void observe_host_log(uint32_t level, const char *message, size_t length);
OBSERVE_IMPORT("metric") void observe_host_metric(uint32_t format, const char *message, size_t length);

#undef OBSERVE_IMPORT

/* Begins a span below the one that was begun last. */
static inline void observe_span_enter(const char *name)
{
	observe_host_span_enter(name, strlen(name));
}

/* Ends the span that was begun last. */
static inline void observe_span_exit(void)
{
	observe_host_span_exit();
}

/*
 * Sets attributes of the span that was begun last, or without one of the guest's run:
 * KEY:VALUE each, or KEY alone for true, separated by commas.
 */
static inline void observe_span_tags(const char *tags)
{
	observe_host_span_tags(tags, strlen(tags));
}

/* An event of the span that was begun last, or without one of the guest's run. */
static inline void observe_log(enum observe_level level, const char *message)
{
	observe_host_log((uint32_t)level, message, strlen(message));
}

/*
 * Records a message of statsd: NAME:VALUE|TYPE, with |@RATE and |#TAG:VALUE,... behind
 * it if need be. TYPE is c for a counter, g for a gauge, ms and h for histograms.
 */
static inline void observe_metric(const char *message)
{
	const uint32_t statsd = 1; /* the one format there is */
	observe_host_metric(statsd, message, strlen(message));
}

#ifdef __cplusplus
}
#endif

#endif
