//! The extensions of a request and of its attempts: each attempt has a copy of the caller's, and the caller
//! gets those of the attempt that counts.

use http::Extensions;

use super::mark;
use crate::report::Report;
use crate::route::Route;
use crate::run::Limits;

/// The caller's extensions, and those of each attempt.
pub(super) struct RequestExtensions<'a> {
    caller: &'a mut Extensions,
    /// The first attempt's. They are kept in place: most requests need no others, and no allocation.
    first: Extensions,
    later: LaterAttempts,
}

/// Those of the attempts after the first: a list, so that those of one can be in use while others are added.
type LaterAttempts = Option<Box<LaterAttempt>>;

struct LaterAttempt {
    own: Extensions,
    next: LaterAttempts,
}

/// Lends each attempt its extensions.
pub(super) struct Lender<'a> {
    first: Option<&'a mut Extensions>,
    /// Where the next one's are put.
    next: Option<&'a mut LaterAttempts>,
}

impl<'a> RequestExtensions<'a> {
    pub(super) fn new(caller: &'a mut Extensions) -> Self {
        Self { caller, first: Extensions::new(), later: None }
    }

    /// The caller's, and the lender of those of the attempts.
    pub(super) fn split(&mut self) -> (&Extensions, Lender<'_>) {
        let Self { caller, first, later } = self;
        (caller, Lender { first: Some(first), next: Some(later) })
    }

    /// Ends the request: the caller gets the extensions of the attempt with this number, if one counts, and
    /// the report.
    #[inline]
    pub(super) fn hand_back(self, attempt: Option<u16>, report: Report) {
        let Self { caller, first, later } = self;
        match attempt {
            None => {}
            Some(1) => replace(caller, first),
            Some(attempt) => replace(caller, take(later, attempt)),
        }
        caller.insert(report);
    }
}

impl<'a> Lender<'a> {
    /// Lends the next attempt a copy of the caller's extensions. Attempts are numbered from 1.
    pub(super) fn lend(&mut self, caller: &Extensions) -> Option<&'a mut Extensions> {
        let own = match self.first.take() {
            Some(first) => first,
            None => {
                let added = LaterAttempt { own: Extensions::new(), next: None };
                let LaterAttempt { own, next } = &mut **self.next.take()?.insert(Box::new(added));
                self.next = Some(next);
                own
            }
        };
        if !caller.is_empty() {
            own.clone_from(caller);
            // Both are for this chain: a route has names that another one does not know.
            own.remove::<Route>();
            own.remove::<Limits>();
        }
        mark::set(own);
        Some(own)
    }
}

/// Those of an attempt after the first.
#[cold]
fn take(mut later: LaterAttempts, attempt: u16) -> Extensions {
    for _ in 2..attempt {
        later = later.and_then(|attempt| attempt.next);
    }
    later.map(|attempt| attempt.own).unwrap_or_default()
}

/// Puts those of an attempt in the place of the caller's.
fn replace(caller: &mut Extensions, own: Extensions) {
    if caller.is_empty() {
        *caller = own;
        mark::remove(caller);
        return;
    }
    let route = caller.remove::<Route>();
    let limits = caller.remove::<Limits>();
    let is_marked = mark::is_set(caller);
    *caller = own;
    if !is_marked {
        mark::remove(caller);
    }
    if let Some(route) = route {
        caller.insert(route);
    }
    if let Some(limits) = limits {
        caller.insert(limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Note(&'static str);

    #[derive(Clone, Debug, PartialEq)]
    struct Number(u16);

    /// Lends as often as `attempts` says. Each attempt must see what the caller has put in, and puts its
    /// number there.
    fn lend(attempts: u16, lender: &mut Lender<'_>, caller: &Extensions) {
        let lent: Vec<_> = (0..attempts).map(|_| lender.lend(caller).unwrap()).collect();
        for (own, number) in lent.into_iter().zip(1..) {
            assert_eq!(own.get::<Note>(), caller.get());
            assert!(own.get::<Route>().is_none() && own.get::<Limits>().is_none());
            assert_eq!(own.insert(Number(number)), None, "another attempt's");
            own.insert(Limits::new().attempts(9));
        }
    }

    #[test]
    fn the_caller_gets_those_of_the_attempt_that_counts() {
        let limits = Limits::new().attempts(3);
        for put_in in [false, true] {
            for attempts in 0..5 {
                for counts in std::iter::once(None).chain((1..=attempts).map(Some)) {
                    let mut caller = Extensions::new();
                    if put_in {
                        caller.insert(Note("mine"));
                        caller.insert(limits);
                        caller.insert(Route::order(["a"]));
                    }
                    let mut extensions = RequestExtensions::new(&mut caller);
                    let (of_caller, mut lender) = extensions.split();
                    lend(attempts, &mut lender, of_caller);
                    extensions.hand_back(counts, Report::new(7));
                    assert_eq!(caller.get::<Number>().map(|number| number.0), counts);
                    assert_eq!(caller.get::<Report>().unwrap().id(), 7);
                    assert_eq!(caller.get::<Note>().is_some(), put_in);
                    assert_eq!(caller.get::<Route>().is_some(), put_in);
                    if put_in {
                        assert_eq!(caller.get::<Limits>(), Some(&limits), "its own");
                    }
                }
            }
        }
    }

    #[test]
    fn a_request_that_is_dropped_leaves_the_caller_what_it_had_put_in() {
        let mut caller = Extensions::new();
        let mut extensions = RequestExtensions::new(&mut caller);
        let (of_caller, mut lender) = extensions.split();
        lend(3, &mut lender, of_caller);
        drop(extensions);
        assert!(caller.is_empty());
    }
}
