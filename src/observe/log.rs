//! Spans and log lines, named as OpenTelemetry names things.

use http::Method;
use reqwest::Url;
use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::{Span, debug, error, info, info_span, trace, warn};

use super::Event;
use crate::report::Attempt;
use crate::verdict::Reason;

/// The span of a claimed request.
pub(super) fn request_span(method: Option<&Method>) -> Span {
    info_span!(
        "failover.request",
        http.request.method = method.map(Method::as_str),
        gen_ai.provider.name = Empty,
        http.response.status_code = Empty,
        http.request.resend_count = Empty,
        error.type = Empty,
    )
}

/// The span of one attempt, below its request's.
pub(super) fn attempt_span(request: &Span, provider: &str, base: &Url, resends: usize) -> Span {
    info_span!(
        parent: request,
        "failover.attempt",
        gen_ai.provider.name = provider,
        server.address = base.host_str(),
        server.port = base.port_or_known_default(),
        http.request.resend_count = resends,
        http.response.status_code = Empty,
        error.type = Empty,
    )
}

/// Writes an attempt's outcome into its span.
pub(super) fn record_outcome(span: &Span, attempt: &Attempt) {
    if let Some(status) = attempt.status() {
        span.record("http.response.status_code", status.as_u16());
    }
    if attempt.reason() != Reason::Ok {
        span.record("error.type", attempt.reason().as_str());
    }
}

/// Writes how a request ended into its span.
pub(super) fn record_end(span: &Span, report: &crate::report::Report) {
    match report.attempts().last() {
        Some(last) => {
            record_outcome(span, last);
            span.record("http.request.resend_count", report.attempts().len() - 1);
        }
        // Nobody was asked.
        None => _ = span.record("error.type", Reason::Other.as_str()),
    }
    if let Some(provider) = report.served_by() {
        span.record("gen_ai.provider.name", provider);
    }
}

/// Whether there is a subscriber. Spans and the lines of routine events are made for none else; the
/// other lines may also be read through the `log` crate, which this does not know of.
pub(super) fn is_heard() -> bool {
    LevelFilter::current() != LevelFilter::OFF
}

/// Writes the log line of an event.
#[cold]
pub(super) fn log(event: &Event<'_>, messages: bool) {
    let shown = |attempt: &Attempt| attempt.message().filter(|_| messages).map(str::to_owned);
    let status = |attempt: &Attempt| attempt.status().map(|status| status.as_u16());
    let millis = |attempt: &Attempt| attempt.elapsed().as_millis() as u64;
    match event {
        Event::AttemptStarted { provider, number } => {
            trace!(gen_ai.provider.name = provider, attempt = number, "attempt started");
        }
        Event::AttemptFinished { attempt }
            if matches!(attempt.reason(), Reason::Auth | Reason::Quota) =>
        {
            error!(
                gen_ai.provider.name = attempt.provider(),
                http.response.status_code = status(attempt),
                error.type = attempt.reason().as_str(),
                elapsed_ms = millis(attempt),
                error.message = shown(attempt),
                "the provider refused the credential or the account"
            )
        }
        Event::AttemptFinished { attempt } => debug!(
            gen_ai.provider.name = attempt.provider(),
            http.response.status_code = status(attempt),
            reason = attempt.reason().as_str(),
            elapsed_ms = millis(attempt),
            "attempt finished"
        ),
        Event::FailedOver { from, to } => warn!(
            from = from.provider(),
            to,
            http.response.status_code = status(from),
            error.type = from.reason().as_str(),
            elapsed_ms = millis(from),
            maybe_processed = from.maybe_processed(),
            error.message = shown(from),
            "failing over"
        ),
        Event::HedgeSent { from, to, waited } => debug!(
            from,
            to,
            elapsed_ms = waited.as_millis() as u64,
            "a provider is silent: a hedge is sent to the next"
        ),
        Event::Exhausted { report } => error!(
            %report,
            error.type = report.attempts().last().map(|attempt| attempt.reason().as_str()),
            error.message = report.attempts().last().and_then(shown),
            "no provider served the request"
        ),
        Event::Rejected { report } => warn!(
            %report,
            error.type = report.attempts().last().map(|attempt| attempt.reason().as_str()),
            error.message = report.attempts().last().and_then(shown),
            "every provider that was asked refused the request"
        ),
        Event::BreakerOpened { provider, key, breaks, cause, .. } => warn!(
            gen_ai.provider.name = provider,
            health_key = key,
            breaks,
            cause,
            "circuit breaker opened"
        ),
        Event::BreakerClosed { provider, key } => {
            info!(gen_ai.provider.name = provider, health_key = key, "circuit breaker closed");
        }
        Event::BreakerProbing { provider, key } => {
            info!(gen_ai.provider.name = provider, health_key = key, "probing after a break");
        }
        Event::CoolingDown { provider, key, .. } => {
            warn!(gen_ai.provider.name = provider, health_key = key, "provider is cooling down");
        }
        Event::AtCapacity { provider } => {
            info!(gen_ai.provider.name = provider, "provider is at capacity");
        }
        Event::PassedThrough { host } => {
            debug!(server.address = host, "no base of the chain claims this request");
        }
        Event::StreamBroken { provider } => {
            warn!(gen_ai.provider.name = provider, "a stream broke after its content had begun");
        }
        Event::CallbackPanicked { callback } => error!(callback, "a closure of the chain panicked"),
        Event::FallbackRateHigh { provider, ratio, reason } => warn!(
            gen_ai.provider.name = provider,
            ratio,
            error.type = reason.map(Reason::as_str),
            "many requests are not served by the first provider"
        ),
        Event::FallbackRateNormal { provider, ratio } => {
            info!(gen_ai.provider.name = provider, ratio, "the first provider serves again");
        }
        Event::Finished { report, .. } => debug!(%report, "request finished"),
    }
}

/// Warns of two providers whose outages will coincide.
pub(super) fn log_shared_host(first: &str, second: &str, host: &str) {
    warn!(first, second, server.address = host, "two providers share a host: they fail together");
}

/// Warns of a provider that has answered nothing but 404.
pub(super) fn log_only_not_found(provider: &str) {
    warn!(
        gen_ai.provider.name = provider,
        "the provider has answered nothing but 404: its base URL is probably wrong"
    );
}
