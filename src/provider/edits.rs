//! What a provider changes in a JSON body, as `build()` checked it.

use reqwest::{Body, Request};

use super::RenameModel;
use super::keyring::Problem;
use crate::splice::{Edits, drop_stale_headers, splice};

/// What a provider changes in a body, as it is typed.
#[derive(Clone, Default)]
pub(super) struct BodyEdits {
    /// Keys, and their values as JSON; `None` for a value that cannot be written so.
    pub(super) set: Vec<(String, Option<String>)>,
    pub(super) remove: Vec<String>,
    pub(super) models: Vec<(String, String)>,
    pub(super) rename_with: Option<RenameModel>,
}

/// The same, without anything that contradicts itself.
pub(super) struct CheckedEdits {
    set: Vec<(String, String)>,
    remove: Vec<String>,
    models: Vec<(String, String)>,
    rename_with: Option<RenameModel>,
}

impl BodyEdits {
    pub(super) fn check(self) -> Result<CheckedEdits, Problem> {
        let Self { set, remove, models, rename_with } = self;
        for (at, (from, to)) in models.iter().enumerate() {
            if from.is_empty() || to.is_empty() {
                return Err(Problem::new("rename_model", "must name two models"));
            }
            if models[..at].iter().any(|(other, _)| other == from) {
                let problem = format!("`{from}` is renamed twice: keep one name for it");
                return Err(Problem::new("rename_model", problem));
            }
        }
        let renames = !models.is_empty() || rename_with.is_some();
        let mut checked = Vec::with_capacity(set.len());
        for (key, value) in set {
            let shown = key.escape_debug();
            if checked.iter().any(|(other, _)| *other == key) {
                let problem = format!("`{shown}` is set twice: keep one value for it");
                return Err(Problem::new("json_set", problem));
            }
            let Some(value) = value else {
                let problem = format!("the value of `{shown}` cannot be written as JSON");
                return Err(Problem::new("json_set", problem));
            };
            checked.push((key, value));
        }
        for (at, key) in remove.iter().enumerate() {
            let shown = key.escape_debug();
            if checked.iter().any(|(set, _)| set == key) {
                let problem = format!("`{shown}` is set, too: keep one of the two");
                return Err(Problem::new("json_remove", problem));
            }
            if remove[..at].contains(key) {
                let problem = format!("`{shown}` is removed twice: once is enough");
                return Err(Problem::new("json_remove", problem));
            }
        }
        let is_model = |key: &String| renames && key == "model";
        let renamed = "`model` is renamed, too: keep one of the two";
        if checked.iter().any(|(key, _)| is_model(key)) {
            return Err(Problem::new("json_set", renamed));
        }
        if remove.iter().any(is_model) {
            return Err(Problem::new("json_remove", renamed));
        }
        Ok(CheckedEdits { set: checked, remove, models, rename_with })
    }
}

impl CheckedEdits {
    /// Edits a body that is in memory. `call` calls the user's closure.
    pub(super) fn apply(
        &self,
        request: &mut Request,
        call: impl Fn(&dyn Fn() -> Option<String>) -> Option<String>,
    ) {
        let Self { set, remove, models, rename_with } = self;
        let renames = !models.is_empty() || rename_with.is_some();
        if !renames && set.is_empty() && remove.is_empty() {
            return;
        }
        let rename = |model: &str| match models.iter().find(|(from, _)| from == model) {
            Some((_, to)) => Some(to.clone()),
            None => call(&|| rename_with.as_ref()?(model)),
        };
        let body = request.body().and_then(Body::as_bytes);
        if let Some(edited) = body.and_then(|body| splice(body, &Edits { set, remove, rename })) {
            *request.body_mut() = Some(edited.into());
            drop_stale_headers(request.headers_mut());
        }
    }
}
