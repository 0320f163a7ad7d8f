//! Takes keys out of the URLs that are handed out.

use reqwest::{Response, ResponseBuilderExt, Url};
use reqwest_middleware::Error;

use crate::message::Secrets;
use crate::provider::Entry;

/// Removes a key from a response's URL, for providers that carry one there, and where the provider
/// chose the URL, whatever of these secrets it shows.
#[inline]
pub(super) fn clean_response(
    response: Response,
    entry: &Entry,
    moved: Option<&Secrets>,
) -> Response {
    let is_shown = moved.is_some_and(|secrets| secrets.is_shown_in(response.url().as_str()));
    if !(is_shown || entry.has_url_key()) {
        return response;
    }
    let mut url = response.url().clone();
    entry.clean_url(&mut url);
    clean_moved_url(&mut url, moved);
    let mut response = http::Response::<reqwest::Body>::from(response);
    let marked = http::Response::builder().url(url).body(()).map(|marked| marked.into_parts().0);
    if let Ok(marked) = marked {
        response.extensions_mut().extend(marked.extensions);
    }
    response.into()
}

/// Removes a key from an error's URL, as from a response's.
pub(super) fn clean_error(mut error: Error, entry: &Entry, moved: Option<&Secrets>) -> Error {
    if let Some(url) = error.url_mut() {
        if entry.has_url_key() {
            entry.clean_url(url);
        }
        clean_moved_url(url, moved);
    }
    error
}

/// A provider may put into a redirect's URL what it was sent in a header.
fn clean_moved_url(url: &mut Url, secrets: Option<&Secrets>) {
    let is_shown = |url: &Url| secrets.is_some_and(|secrets| secrets.is_shown_in(url.as_str()));
    if is_shown(url) {
        url.set_query(None);
        url.set_fragment(None);
    }
    if is_shown(url) {
        url.set_path("");
    }
}

/// What reqwest gives a response that was made without a URL.
pub(super) fn is_unknown(url: &Url) -> bool {
    url.as_str() == "http://no.url.provided.local/"
}
