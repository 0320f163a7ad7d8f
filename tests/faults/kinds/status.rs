//! Statuses, with an error in the vendors' form that says the key aloud.

use reqwest_failover::Reason::{
    self, Auth, ClientError, Other, RateLimited, Redirected, ServerError,
};

use super::{Cost, Kind, reply, status};
use crate::script::Asked;

pub(super) fn kinds() -> Vec<Kind> {
    use Cost::{Cooldown, Failure, Nothing};
    let nowhere: &[&str] = &["location: /elsewhere"];
    let refused = |code: u16, reason: Reason, cost: Cost, lines: &'static [&'static str]| {
        let name = match lines {
            [] => format!("{code}"),
            lines => format!("{code} with {}", lines.join(", ")),
        };
        let answer = move |it: &Asked| it.refusal(code, lines);
        Kind::new(name, status(code, reason, cost), reply(answer))
    };
    let mut kinds = vec![
        refused(302, Redirected, Nothing, nowhere),
        refused(303, Redirected, Nothing, nowhere),
        refused(307, Redirected, Nothing, nowhere),
        refused(308, Redirected, Nothing, nowhere),
        refused(400, ClientError, Nothing, &[]),
        refused(401, Auth, Failure, &[]),
        refused(402, Auth, Failure, &[]),
        refused(403, Auth, Failure, &[]),
        refused(404, ClientError, Nothing, &[]),
        refused(408, ServerError, Failure, &[]),
        refused(409, ClientError, Nothing, &[]),
        refused(413, ClientError, Nothing, &[]),
        refused(422, ClientError, Nothing, &[]),
        refused(425, ServerError, Failure, &[]),
        refused(429, RateLimited, Cooldown, &[]),
        refused(429, RateLimited, Cooldown, &["retry-after: 2"]),
        refused(429, RateLimited, Cooldown, &["retry-after: 1.5"]),
        refused(429, RateLimited, Cooldown, &["retry-after: Fri, 31 Dec 9999 23:59:59 GMT"]),
        refused(429, RateLimited, Cooldown, &["retry-after-ms: 1500"]),
        refused(429, RateLimited, Cooldown, &["retry-after: soon"]),
        refused(499, ClientError, Nothing, &[]),
        refused(402, Auth, Cooldown, &["retry-after: 2"]),
        refused(503, ServerError, Cooldown, &["retry-after: 2"]),
        refused(529, ServerError, Cooldown, &["retry-after: 2"]),
    ];
    let failing = [500, 502, 503, 504, 520, 521, 522, 523, 524, 529];
    kinds.extend(failing.map(|code| refused(code, ServerError, Failure, &[])));
    kinds.push(refused(999, Other, Failure, &[]));
    kinds
}
