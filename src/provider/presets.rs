//! Providers whose base URL and credential are known.

use std::env::VarError;

use super::{Credential, Provider};

impl Provider {
    /// CometAPI: the name `cometapi`, `https://api.cometapi.com/v1`, and a bearer key.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let chain = ProviderChain::builder([Provider::cometapi("comet-key")]).build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn cometapi(key: impl Into<String>) -> Self {
        Self::new("cometapi", COMETAPI).bearer_auth(key)
    }

    /// [`cometapi`](Self::cometapi) with the key from the environment variable `COMETAPI_KEY`, read
    /// now. If it is missing, `build()` fails and says so.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let built = ProviderChain::builder([Provider::cometapi_from_env()]).build();
    /// if let Err(error) = built {
    ///     assert!(error.to_string().contains("COMETAPI_KEY"));
    /// }
    /// ```
    pub fn cometapi_from_env() -> Self {
        Self::new("cometapi", COMETAPI).bearer_env("COMETAPI_KEY")
    }

    /// OpenAI: the name `openai`, `https://api.openai.com/v1`, and a bearer key.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let chain = ProviderChain::builder([Provider::openai("openai-key")]).build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn openai(key: impl Into<String>) -> Self {
        Self::new("openai", OPENAI).bearer_auth(key)
    }

    /// [`openai`](Self::openai) with the key from the environment variable `OPENAI_API_KEY`, read
    /// now. If it is missing, `build()` fails and says so.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let built = ProviderChain::builder([Provider::openai_from_env()]).build();
    /// if let Err(error) = built {
    ///     assert!(error.to_string().contains("OPENAI_API_KEY"));
    /// }
    /// ```
    pub fn openai_from_env() -> Self {
        Self::new("openai", OPENAI).bearer_env("OPENAI_API_KEY")
    }

    pub(super) fn bearer_env(self, variable: &'static str) -> Self {
        let key = std::env::var(variable).map_err(|error| match error {
            VarError::NotPresent => "is not set in the environment: set it to the key",
            VarError::NotUnicode(_) => "is not Unicode: set it to the key",
        });
        self.credential(Credential::Env(variable, key))
    }
}

const COMETAPI: &str = "https://api.cometapi.com/v1";
const OPENAI: &str = "https://api.openai.com/v1";
