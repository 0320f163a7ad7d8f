//! Providers whose base URL and credential are known.

use std::env::VarError;

use super::key::checked_key;
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

    /// [`bearer_auth`](Self::bearer_auth) with the key from this environment variable, read now. If it
    /// is missing, or holds no key, `build()` fails and says so.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let groq = Provider::new("groq", "https://api.groq.com/openai/v1").bearer_auth_env("GROQ_API_KEY");
    /// if let Err(error) = ProviderChain::builder([groq]).build() {
    ///     assert!(error.to_string().contains("`GROQ_API_KEY` is not set in the environment"));
    /// }
    /// ```
    pub fn bearer_auth_env(self, variable: impl AsRef<str>) -> Self {
        let variable = variable.as_ref();
        let name = match is_plainly_a_name(variable) {
            true => format!("`{variable}`"),
            false => "the variable of that name".to_owned(),
        };
        let key = read(variable)
            .and_then(|key| checked_key(&key).map(str::to_owned))
            .map_err(|problem| format!("{name} {problem}").into());
        self.credential(Credential::Env("bearer_auth_env", key))
    }

    pub(super) fn bearer_env(self, variable: &'static str) -> Self {
        self.credential(Credential::Env(variable, read(variable).map_err(Into::into)))
    }
}

fn read(variable: &str) -> Result<String, &'static str> {
    std::env::var(variable).map_err(|error| match error {
        VarError::NotPresent => "is not set in the environment: set it to the key",
        VarError::NotUnicode(_) => "is not Unicode: set it to the key",
    })
}

/// Whether this may be shown as a variable's name. A user who mixes up the methods put the key itself
/// there, and keys have digits.
fn is_plainly_a_name(variable: &str) -> bool {
    const MOST_DIGITS: usize = 3;
    let digits = variable.bytes().filter(u8::is_ascii_digit).count();
    let of_a_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    variable.contains('_') && digits <= MOST_DIGITS && variable.bytes().all(of_a_name)
}

const COMETAPI: &str = "https://api.cometapi.com/v1";
const OPENAI: &str = "https://api.openai.com/v1";
