//! Which base a URL that no base claims was perhaps meant for.

use std::fmt;

use reqwest::Url;

use super::{Base, Scope};

/// In what a URL differs from a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    scheme: bool,
    host: bool,
    port: bool,
    path: bool,
}

impl Difference {
    fn of(url: &Url, base: &Base) -> Self {
        let scheme = url.scheme() != base.url.scheme();
        Self {
            scheme,
            host: url.host() != base.url.host(),
            // Another scheme has another port, which need not be said.
            port: match scheme {
                true => url.port() != base.url.port(),
                false => url.port_or_known_default() != base.url.port_or_known_default(),
            },
            path: base.suffix(url).is_none(),
        }
    }

    /// A host is seldom mistaken for another one.
    fn weight(self) -> u32 {
        4 * u32::from(self.host)
            + 2 * u32::from(self.port)
            + u32::from(self.scheme)
            + u32::from(self.path)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port, path } = *self;
        let parts = [(scheme, "scheme"), (host, "host"), (port, "port"), (path, "path")];
        let parts = parts.into_iter().filter(|(differs, _)| *differs).map(|(_, part)| part);
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

impl Scope {
    /// The base that a URL differs least from, and in what.
    pub(crate) fn nearest(&self, url: &Url) -> Option<(&Base, Difference)> {
        let bases = self.bases.iter().map(|base| (base, Difference::of(url, base)));
        bases.min_by_key(|(_, difference)| difference.weight())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_base_is_the_one_that_differs_least() {
        let bases = ["http://127.0.0.1:8000/v1", "https://api.example.com/v1", "https://b.test/x"];
        let scope = Scope::new(bases.map(|base| Base::parse(base).unwrap()));
        for (url, nearest, differs) in [
            ("http://localhost:8000/v1/chat", 0, "host"),
            ("http://127.0.0.1:8080/v1/chat", 0, "port"),
            ("https://api.example.com/V1/chat", 1, "path"),
            ("https://api.example.com/v12", 1, "path"),
            ("http://api.example.com/v1/chat", 1, "scheme"),
            ("http://api.example.com:81/chat", 1, "scheme, port, path"),
            ("https://b.test:444/x", 2, "port"),
            ("ftp://else.test/", 1, "scheme, host, path"),
        ] {
            let url = Url::parse(url).unwrap();
            let (base, difference) = scope.nearest(&url).unwrap();
            assert_eq!(format!("{base:?}"), bases[nearest], "{url}");
            assert_eq!(difference.to_string(), differs, "{url}");
        }
    }
}
