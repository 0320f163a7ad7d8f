//! Two mirrors of one file on loopback, with ranges and ETags. Each test counts what each received.

use reqwest::StatusCode;
use reqwest::header::{ETAG, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE};
use reqwest_failover::{Provider, ProviderChain, Report, Route, State, harden};
use reqwest_failover_testing::support::{Answer, Place, Received, Script, Server, Step};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};

const URL: &str = "https://deb.example.com/debian/dists/InRelease";
const FILE: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

/// The file, or `None` if it is still the one with this ETag.
async fn refresh(
    client: &ClientWithMiddleware,
    url: &str,
    etag: &str,
) -> reqwest_middleware::Result<Option<Vec<u8>>> {
    let request = client.get(url).header(IF_NONE_MATCH, etag);
    let response = request.send().await?.error_for_status()?;
    match response.status() {
        StatusCode::NOT_MODIFIED => Ok(None),
        _ => Ok(Some(response.bytes().await?.to_vec())),
    }
}

/// The whole file. After a break, the rest of it from another mirror.
async fn download(
    client: &ClientWithMiddleware,
    url: &str,
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let (mut file, mut etag, mut broken) = (Vec::new(), None::<HeaderValue>, None::<String>);
    for _ in 0..5 {
        let mut request = client.get(url).with_extension(Route::skip(broken.clone()));
        // A weak ETag does not promise the same bytes.
        let strong = etag.as_ref().filter(|etag| !etag.as_bytes().starts_with(b"W/"));
        if let Some(etag) = strong {
            request =
                request.header(RANGE, format!("bytes={}-", file.len())).header(IF_RANGE, etag);
        }
        let response = request.send().await.and_then(|answer| Ok(answer.error_for_status()?));
        let mut response = match response {
            // The others are down. The one that broke may go on.
            Err(_) if broken.take().is_some() => continue,
            answer => answer?,
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            file.clear(); // All of it: it has changed, or is another one at this mirror.
        }
        etag = response.headers().get(ETAG).cloned();
        broken = Report::of(&response).and_then(Report::served_by).map(str::to_owned);
        loop {
            match response.chunk().await {
                Ok(Some(part)) => file.extend_from_slice(&part),
                Ok(None) => return Ok(file),
                Err(_) => break,
            }
        }
    }
    Err("the download broke five times".into())
}

/// A server of files: it honours `If-None-Match`, `Range` and `If-Range`.
fn mirror(
    file: &'static str,
    etag: &'static str,
) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    move |request| {
        if request.header("if-none-match") == Some(etag) {
            return Answer::status(304).header("etag", etag);
        }
        let fits = request.header("if-range").is_none_or(|wanted| wanted == etag);
        let from = request.header("range").filter(|_| fits).map(|range| {
            let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
            from.expect("an open range").parse::<usize>().expect("a number")
        });
        let answer = Answer::status(if from.is_some() { 206 } else { 200 }).header("etag", etag);
        let answer = match from {
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
                answer.header("content-range", range)
            }
            None => answer,
        };
        answer.body(&file.as_bytes()[from.unwrap_or(0)..])
    }
}

/// The same, but each body ends halfway.
fn breaks(
    file: &'static str,
    etag: &'static str,
) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    let whole = mirror(file, etag);
    move |request| whole(request).at(Place::WithinBody, Step::Fin)
}

struct Pair {
    mirrors: [Server; 2],
    chain: ProviderChain,
    client: ClientWithMiddleware,
}

impl Pair {
    async fn start(near: impl Into<Script>, far: impl Into<Script>) -> Self {
        let mirrors = [Server::start(near).await, Server::start(far).await];
        let chain = ProviderChain::builder([
            Provider::new("near", mirrors[0].base_url("/debian")),
            Provider::new("far", mirrors[1].base_url("/pub/debian")),
        ])
        .claim("https://deb.example.com/debian")
        .build()
        .expect("a sound chain");
        let http = harden(reqwest::Client::builder()).no_proxy().build().expect("a TLS stack");
        let client = ClientBuilder::new(http).with(chain.clone()).build();
        Self { mirrors, chain, client }
    }

    /// `Range` and `If-Range` of each request, per mirror.
    fn ranges(&self) -> [Vec<[Option<String>; 2]>; 2] {
        let paths = ["/debian/dists/InRelease", "/pub/debian/dists/InRelease"];
        [0, 1].map(|at| {
            let requests = self.mirrors[at].requests().into_iter().map(|request| {
                assert_eq!(request.target, paths[at]);
                ["range", "if-range"].map(|name| request.header(name).map(str::to_owned))
            });
            requests.collect()
        })
    }

    fn counts(&self) -> [usize; 2] {
        self.ranges().map(|requests| requests.len())
    }
}

fn part(from: usize, etag: &str) -> [Option<String>; 2] {
    [Some(format!("bytes={from}-")), Some(etag.to_owned())]
}

#[tokio::test]
async fn a_304_is_the_answer_from_whichever_mirror_it_comes() {
    let pair = Pair::start(mirror(FILE, "\"one\""), mirror(FILE, "\"one\"")).await;
    assert_eq!(refresh(&pair.client, URL, "\"one\"").await.unwrap(), None);
    assert_eq!(pair.counts(), [1, 0]);

    for broken in [Answer::error(503, "closed"), Answer::reset(), Answer::status(404)] {
        let pair = Pair::start(broken, mirror(FILE, "\"one\"")).await;
        assert_eq!(refresh(&pair.client, URL, "\"one\"").await.unwrap(), None);
        assert_eq!(pair.counts(), [1, 1]);
        assert_eq!(pair.mirrors[1].only_request().header("if-none-match"), Some("\"one\""));
        // Another ETag: the file.
        let file = refresh(&pair.client, URL, "\"old\"").await.unwrap();
        assert_eq!(file.as_deref(), Some(FILE.as_bytes()));
    }
}

#[tokio::test]
async fn a_404_costs_the_mirror_nothing() {
    let pair = Pair::start(Answer::status(404), mirror(FILE, "\"one\"")).await;
    for _ in 0..10 {
        assert_eq!(download(&pair.client, URL).await.unwrap(), FILE.as_bytes());
    }
    assert_eq!(pair.counts(), [10, 10]);
    let snapshot = pair.chain.snapshot();
    assert_eq!(snapshot.providers()[0].state(), State::Closed);
    assert_eq!(snapshot.providers()[0].failures(), 0);
}

#[tokio::test]
async fn a_download_that_breaks_goes_on_at_the_next_mirror() {
    let pair = Pair::start(breaks(FILE, "\"one\""), mirror(FILE, "\"one\"")).await;
    assert_eq!(download(&pair.client, URL).await.unwrap(), FILE.as_bytes());
    assert_eq!(pair.ranges(), [vec![[None, None]], vec![part(18, "\"one\"")]]);
}

#[tokio::test]
async fn a_download_goes_on_at_the_mirror_that_broke_when_the_others_are_down() {
    let far = mirror(FILE, "\"one\"");
    let far = move |request: &Received| match request.index {
        0 => far(request).at(Place::WithinBody, Step::Fin),
        _ => far(request),
    };
    let pair = Pair::start(Answer::error(503, "closed"), far).await;
    assert_eq!(download(&pair.client, URL).await.unwrap(), FILE.as_bytes());
    // The second attempt skips the far mirror; the third asks both, for the same part.
    let rest = part(18, "\"one\"");
    let near = vec![[None, None], rest.clone(), rest.clone()];
    assert_eq!(pair.ranges(), [near, vec![[None, None], rest]]);
}

#[tokio::test]
async fn a_download_ends_when_every_mirror_is_down() {
    let pair = Pair::start(Answer::error(503, "closed"), Answer::error(500, "broken")).await;
    let error = download(&pair.client, URL).await.expect_err("no mirror is well");
    assert!(error.to_string().contains("500"), "{error}");
    assert_eq!(pair.counts(), [1, 1]);
}

#[tokio::test]
async fn another_file_at_the_next_mirror_is_sent_whole() {
    const OTHER: &str = "another file, of another length than the first";
    for etag in ["\"two\"", "W/\"one\""] {
        let pair = Pair::start(breaks(FILE, "\"one\""), mirror(OTHER, etag)).await;
        assert_eq!(download(&pair.client, URL).await.unwrap(), OTHER.as_bytes());
        assert_eq!(pair.ranges(), [vec![[None, None]], vec![part(18, "\"one\"")]]);
    }
    // A weak ETag is not sent in `If-Range`, and no part is asked for.
    let pair = Pair::start(breaks(FILE, "W/\"one\""), mirror(FILE, "W/\"one\"")).await;
    assert_eq!(download(&pair.client, URL).await.unwrap(), FILE.as_bytes());
    assert_eq!(pair.ranges(), [vec![[None, None]], vec![[None, None]]]);
}

#[tokio::test]
async fn a_download_ends_although_each_mirror_breaks_every_time() {
    let pair = Pair::start(breaks(FILE, "\"one\""), breaks(FILE, "\"one\"")).await;
    // Each attempt gets half of what is left: 18 + 9 + 4 + 2 + 1 of 36.
    let error = download(&pair.client, URL).await.expect_err("it broke five times");
    assert_eq!(error.to_string(), "the download broke five times");
    let one = |from| part(from, "\"one\"");
    assert_eq!(pair.ranges(), [vec![[None, None], one(27), one(33)], vec![one(18), one(31)]]);
}

#[test]
fn the_page_shows_these_functions() {
    let source = include_str!("mirrors.rs");
    let begin = source.find("/// The file, or").expect("the first");
    let end = source.find("/// A server of files").expect("the end");
    assert!(include_str!("../../docs/recipes.md").contains(source[begin..end].trim_end()));
}
