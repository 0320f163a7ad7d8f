//! Which providers one request may go to, where the chain's own order is not the answer.

use std::sync::Arc;

use crate::error::FailureKind;

/// Where one request may go: for stateful paths such as `/files/{id}`, which only the provider that
/// holds the file can serve.
///
/// As a request extension:
///
/// ```no_run
/// # async fn ask(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use reqwest_failover::Route;
///
/// let file = client
///     .get("https://api.openai.com/v1/files/file-abc")
///     .with_extension(Route::only(["openai"]))
///     .send()
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// Or from [`route`](crate::ProviderChainBuilder::route), for clients that lose extensions. An
/// extension wins over the closure, and is removed for a chain that is stacked inside. A name that is not
/// in the chain is an error, and nothing is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    rule: Rule,
}

impl Route {
    /// Only these providers, in the chain's order.
    pub fn only<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self { rule: Rule::Only(collect(names)) }
    }

    /// These providers first, in this order, then the others in the chain's.
    pub fn order<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self { rule: Rule::Order(collect(names)) }
    }

    /// All providers but these.
    pub fn skip<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self { rule: Rule::Skip(collect(names)) }
    }

    /// One attempt, at the provider whose turn it is: no failover, and no hedge.
    pub fn no_failover() -> Self {
        Self { rule: Rule::NoFailover }
    }

    /// Whether only one attempt is allowed.
    pub(crate) fn forbids_failover(&self) -> bool {
        self.rule == Rule::NoFailover
    }

    /// The order for this request. `find` knows the chain's names, `known` lists them.
    pub(crate) fn resolve(
        &self,
        order: &Arc<[usize]>,
        find: impl Fn(&str) -> Option<usize>,
        known: impl Fn() -> String,
    ) -> Result<Arc<[usize]>, FailureKind> {
        let named = |names: &[String]| -> Result<Vec<usize>, FailureKind> {
            let known = || known();
            let unknown = |name: &String| FailureKind::UnknownRoute {
                name: name.escape_debug().to_string(),
                known: known(),
            };
            names.iter().map(|name| find(name).ok_or_else(|| unknown(name))).collect()
        };
        Ok(match &self.rule {
            Rule::NoFailover => order.clone(),
            Rule::Only(names) => {
                let named = named(names)?;
                order.iter().copied().filter(|provider| named.contains(provider)).collect()
            }
            Rule::Skip(names) => {
                let named = named(names)?;
                order.iter().copied().filter(|provider| !named.contains(provider)).collect()
            }
            Rule::Order(names) => {
                let mut new: Vec<usize> = Vec::with_capacity(order.len());
                for provider in named(names)?.into_iter().chain(order.iter().copied()) {
                    if !new.contains(&provider) {
                        new.push(provider);
                    }
                }
                new.into()
            }
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Only(Vec<String>),
    Order(Vec<String>),
    Skip(Vec<String>),
    NoFailover,
}

fn collect<I>(names: I) -> Vec<String>
where
    I: IntoIterator,
    I::Item: Into<String>,
{
    names.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(route: Route) -> Result<Vec<usize>, String> {
        let names = ["a", "b", "c"];
        let order: Arc<[usize]> = [2, 0, 1].into();
        let find = |name: &str| names.iter().position(|known| *known == name);
        let resolved = route.resolve(&order, find, || names.join(", "));
        resolved.map(|order| order.to_vec()).map_err(|cause| cause.to_string())
    }

    #[test]
    fn each_rule_gives_its_order() {
        assert_eq!(resolve(Route::only(["a", "c"])), Ok(vec![2, 0]));
        assert_eq!(resolve(Route::skip(["c"])), Ok(vec![0, 1]));
        assert_eq!(resolve(Route::order(["b", "b"])), Ok(vec![1, 2, 0]));
        assert_eq!(resolve(Route::no_failover()), Ok(vec![2, 0, 1]));
        assert!(Route::no_failover().forbids_failover() && !Route::only(["a"]).forbids_failover());
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        for route in [Route::only(["x"]), Route::skip(["a", "x"]), Route::order(["x"])] {
            let error = resolve(route).unwrap_err();
            assert!(error.contains("`x`") && error.contains("a, b, c"), "{error}");
        }
    }
}
