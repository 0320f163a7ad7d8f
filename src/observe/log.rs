//! Spans and log lines, named as OpenTelemetry names things.

use std::fmt;

use http::Method;
use reqwest::Url;
use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::{Span, info_span};

use super::Event;
use crate::report::Attempt;
use crate::verdict::Reason;

/// The target of every span and line.
const TARGET: &str = "reqwest_failover";

/// Writes a log line.
macro_rules! line {
    ($level:ident, $message:literal, $($fields:tt)*) => {
        tracing::event!(target: TARGET, tracing::Level::$level, { $($fields)* }, $message)
    };
}

/// The span of a claimed request.
pub(super) fn request_span(method: Option<&Method>) -> Span {
    info_span!(target: TARGET,
        "failover.request",
        failover.request_id = Empty,
        http.request.method = method.map(Method::as_str),
        gen_ai.provider.name = Empty,
        http.response.status_code = Empty,
        http.request.resend_count = Empty,
        error.type = Empty,
    )
}

/// The span of one attempt, below its request's.
pub(super) fn attempt_span(request: &Span, provider: &str, base: &Url, resends: usize) -> Span {
    info_span!(target: TARGET,
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
        // No provider was asked.
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
        Event::AttemptStarted { provider, number, .. } => {
            line!(TRACE, "attempt started", gen_ai.provider.name = provider, attempt = number);
        }
        Event::AttemptFinished { attempt, .. }
            if matches!(attempt.reason(), Reason::Auth | Reason::Quota) =>
        {
            line!(
                ERROR,
                "the provider refused the credential or the account",
                gen_ai.provider.name = attempt.provider(),
                http.response.status_code = status(attempt),
                error.type = attempt.reason().as_str(),
                elapsed_ms = millis(attempt),
                error.message = shown(attempt)
            )
        }
        Event::AttemptFinished { attempt, .. } => {
            line!(
                DEBUG,
                "attempt finished",
                gen_ai.provider.name = attempt.provider(),
                http.response.status_code = status(attempt),
                reason = attempt.reason().as_str(),
                elapsed_ms = millis(attempt)
            )
        }
        Event::FailedOver { from, to, .. } => line!(
            WARN,
            "failing over",
            from = from.provider(),
            to,
            http.response.status_code = status(from),
            error.type = from.reason().as_str(),
            elapsed_ms = millis(from),
            maybe_processed = from.maybe_processed(),
            error.message = shown(from)
        ),
        Event::HedgeSent { from, to, waited, .. } => line!(
            DEBUG,
            "a provider is silent: a hedge is sent to the next",
            from,
            to,
            elapsed_ms = waited.as_millis() as u64
        ),
        Event::Exhausted { report, .. } => line!(
            ERROR,
            "no provider served the request",
            %report,
            error.type = report.attempts().last().map(|attempt| attempt.reason().as_str()),
            error.message = report.attempts().last().and_then(shown)
        ),
        Event::Rejected { report, .. } => {
            line!(
                WARN,
                "every provider that was asked refused the request",
                %report,
                error.type = report.attempts().last().map(|attempt| attempt.reason().as_str()),
                error.message = report.attempts().last().and_then(shown)
            )
        }
        Event::BreakerOpened { provider, key, breaks, cause, heard, .. } => {
            line!(
                WARN,
                "circuit breaker opened",
                gen_ai.provider.name = provider,
                health_key = key,
                breaks,
                cause,
                heard
            )
        }
        Event::BreakerClosed { provider, key, .. } => {
            line!(
                INFO,
                "circuit breaker closed",
                gen_ai.provider.name = provider,
                health_key = key
            );
        }
        Event::BreakerProbing { provider, key, .. } => {
            line!(INFO, "probing after a break", gen_ai.provider.name = provider, health_key = key);
        }
        Event::CoolingDown { provider, key, heard, .. } => {
            line!(
                WARN,
                "provider is cooling down",
                gen_ai.provider.name = provider,
                health_key = key,
                heard
            );
        }
        Event::AtCapacity { provider, .. } => {
            line!(INFO, "provider is at capacity", gen_ai.provider.name = provider);
        }
        Event::PassedThrough { host, .. } => {
            line!(DEBUG, "no base of the chain claims this request", server.address = host);
        }
        Event::StreamBroken { provider, reason, message, .. } => {
            line!(
                WARN,
                "a stream broke after its content had begun",
                gen_ai.provider.name = provider,
                error.type = reason.as_str(),
                error.message = message.filter(|_| messages)
            )
        }
        Event::CallbackPanicked { callback } => {
            line!(ERROR, "a closure of the chain panicked", callback)
        }
        Event::FallbackRateHigh { provider, ratio, reason, .. } => {
            line!(
                WARN,
                "many requests are not served by the first provider",
                gen_ai.provider.name = provider,
                ratio,
                error.type = reason.map(Reason::as_str)
            )
        }
        Event::FallbackRateNormal { provider, ratio, .. } => {
            line!(INFO, "the first provider serves again", gen_ai.provider.name = provider, ratio);
        }
        Event::FleetJoined => line!(INFO, "health is shared with other processes",),
        Event::FleetLost { error } => {
            line!(
                WARN,
                "the store of shared health has failed: this process goes on by itself",
                error.message = error
            );
        }
        Event::Steered { provider: Some(provider), heard } => {
            line!(
                WARN,
                "a provider was isolated or restored",
                gen_ai.provider.name = provider,
                heard
            );
        }
        Event::Steered { provider: None, heard } => {
            line!(WARN, "the order of the providers was set", heard);
        }
        Event::Finished { report, .. } => line!(
            DEBUG,
            "request finished",
            %report
        ),
    }
}

/// Warns of two providers whose outages will coincide.
pub(super) fn log_shared_host(first: &str, second: &str, host: &str) {
    line!(
        WARN,
        "two providers share a host: they fail together",
        first,
        second,
        server.address = host
    );
}

/// Warns of a provider that has answered nothing but 404.
pub(super) fn log_only_not_found(provider: &str) {
    line!(
        WARN,
        "the provider has answered nothing but 404: its base URL is probably wrong",
        gen_ai.provider.name = provider
    );
}

/// Warns of an origin whose requests are passed through.
pub(super) fn log_passed_through(
    origin: &str,
    nearest: &dyn fmt::Debug,
    differs: &dyn fmt::Display,
) {
    line!(
        WARN,
        "requests to this origin are passed through: no base of the chain claims them",
        origin,
        ?nearest,
        %differs
    );
}
