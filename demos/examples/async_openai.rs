//! The `async-openai` client over a chain: a chat, a streamed chat, an upload, and what is left when
//! every provider is down.
//!
//! ```text
//! cargo run -p reqwest-failover-demos --example async_openai
//! ```
//!
//! Two stand-ins on loopback play CometAPI and OpenAI; nothing leaves this machine. Every step
//! checks what came back and what each stand-in received: where it is not as announced, the example
//! panics.

use std::error::Error;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use async_openai::types::InputSource;
use async_openai::types::chat::{
    ChatCompletionRequestUserMessage, CreateChatCompletionRequest, CreateChatCompletionRequestArgs,
};
use async_openai::types::files::{CreateFileRequest, FileInput, FilePurpose};
use futures_util::StreamExt;
use reqwest_failover::{Exhausted, FailoverError, Provider, ProviderChain, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tower::service_fn;

use reqwest_failover_testing::stand_in::StandIn;

const COMETAPI_KEY: &str = "sk-stand-in-cometapi";
const OPENAI_KEY: &str = "sk-stand-in-openai";

/// async-openai below a chain. It holds no key of a provider: its own is taken off every request.
fn client(
    cometapi: &StandIn,
    openai: &StandIn,
    exhausted: Exhausted,
) -> Result<Client<OpenAIConfig>, Box<dyn Error>> {
    let chain = ProviderChain::builder([
        Provider::new("cometapi", cometapi.base_url()).bearer_auth(COMETAPI_KEY),
        Provider::new("openai", openai.base_url()).bearer_auth(OPENAI_KEY),
    ])
    // async-openai's own default: what it asks is the chain's.
    .claim("https://api.openai.com/v1")
    .on_exhausted(exhausted)
    // Each step here is about one request, not about what the ones before it did to health.
    .without_health()
    .build()?;
    let http = harden(reqwest::Client::builder()).no_proxy().build()?;
    let config = OpenAIConfig::new()
        .with_api_base("https://api.openai.com/v1")
        .with_api_key("sk-of-no-provider");
    Ok(Client::with_config(config)
        // First the client, which builds the requests, then the service, which sends them:
        // `with_http_client` would put async-openai's own sending and retries back in place.
        .with_http_client(http.clone())
        .with_http_service(adapter(ClientBuilder::new(http).with(chain).build())))
}

/// A `ClientWithMiddleware` as the service that async-openai sends through.
fn adapter(
    client: ClientWithMiddleware,
) -> impl tower::Service<
    HttpRequestFactory,
    Response = reqwest::Response,
    Error = OpenAIError,
    Future: Send + 'static,
> + Clone
+ Send
+ Sync
+ 'static {
    service_fn(move |factory: HttpRequestFactory| {
        let client = client.clone();
        async move {
            let request = factory.build().await?;
            client.execute(request).await.map_err(|error| match error {
                reqwest_middleware::Error::Reqwest(error) => OpenAIError::Reqwest(error),
                error => OpenAIError::Boxed(error.into()),
            })
        }
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cometapi = StandIn::start(COMETAPI_KEY, "I am the stand-in for CometAPI.").await?;
    let openai = StandIn::start(OPENAI_KEY, "I am the stand-in for OpenAI.").await?;
    let received = || (cometapi.received().len(), openai.received().len());
    let client_with = |exhausted| client(&cometapi, &openai, exhausted);
    let client = client_with(Exhausted::LastOutcome)?;

    println!("1. A chat; CometAPI answers");
    let answer = client.chat().create(question()?).await?;
    let content = answer.choices[0].message.content.as_deref();
    println!("   content   {content:?}");
    assert_eq!(content, Some("I am the stand-in for CometAPI."));
    assert_eq!(received(), (1, 0));

    println!("2. A chat; CometAPI fails with 500, OpenAI answers");
    cometapi.fail(500, "The server had an error.");
    let answer = client.chat().create(question()?).await?;
    let content = answer.choices[0].message.content.as_deref();
    println!("   content   {content:?}");
    assert_eq!(content, Some("I am the stand-in for OpenAI."));
    assert_eq!(received(), (2, 1), "async-openai's own retries are out of the way");

    println!("3. A streamed chat; CometAPI fails with 429, OpenAI answers");
    cometapi.fail(429, "Slow down.");
    let mut stream = client.chat().create_stream(question()?).await?;
    let (mut text, mut deltas) = (String::new(), 0);
    while let Some(chunk) = stream.next().await {
        if let Some(delta) = chunk?.choices.first().and_then(|choice| choice.delta.content.clone())
        {
            text.push_str(&delta);
            deltas += 1;
        }
    }
    println!("   content   {text:?} in {deltas} pieces");
    assert_eq!(text, "I am the stand-in for OpenAI.");
    assert_eq!(deltas, 6, "one piece per word");
    assert_eq!(received(), (3, 2));

    println!("4. An upload; CometAPI fails with 503, OpenAI gets the same form");
    cometapi.fail(503, "No channel is available.");
    let lines = "{\"custom_id\": \"1\"}\n".repeat(1000);
    let file = client
        .files()
        .create(CreateFileRequest {
            file: FileInput {
                source: InputSource::Bytes {
                    filename: "questions.jsonl".into(),
                    bytes: lines.clone().into(),
                },
            },
            purpose: FilePurpose::Batch,
            expires_after: None,
        })
        .await?;
    println!("   stored    {}, {} bytes with its form", file.id, file.bytes.unwrap_or_default());
    assert_eq!(received(), (4, 3));
    let [first, second] = [&cometapi, &openai].map(|stand_in| {
        let upload = stand_in.received().pop().expect("an upload");
        let (head, body) = upload.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("POST /v1/files "), "{head}");
        body.to_owned()
    });
    assert!(first.contains(&lines), "the first provider got the whole file");
    assert_eq!(first, second, "and the second got the same bytes");

    println!("5. Both are down; the caller gets async-openai's own error");
    openai.fail(429, "You exceeded your current quota.");
    match client.chat().create(question()?).await {
        Err(OpenAIError::ApiError(error)) => {
            println!("   error     {error}");
            assert_eq!(error.status_code, 429, "the last provider's");
            assert_eq!(error.api_error.code.as_deref(), Some("insufficient_quota"));
        }
        other => panic!("async-openai was to report an ApiError: {other:?}"),
    }
    assert_eq!(received(), (5, 4));

    println!("6. Both are down; the caller wants to know of both");
    let client = client_with(Exhausted::Error)?;
    let error = client.chat().create(question()?).await.expect_err("both are down");
    let failed = FailoverError::find(&error).expect("the chain's error, through async-openai's");
    println!("   report    {}", failed.report());
    println!("   error     {error}");
    let statuses: Vec<_> =
        failed.report().attempts().iter().filter_map(|attempt| attempt.status()).collect();
    assert_eq!(statuses, [503, 429]);
    assert!(error.to_string().contains("No channel is available."), "CometAPI's message");
    assert!(error.to_string().contains("You exceeded your current quota."), "OpenAI's message");
    assert_eq!(received(), (6, 5));

    for (stand_in, own, other) in
        [(&cometapi, COMETAPI_KEY, OPENAI_KEY), (&openai, OPENAI_KEY, COMETAPI_KEY)]
    {
        for request in stand_in.received() {
            assert!(request.contains(own), "each provider got its own key");
            assert!(!request.contains(other) && !request.contains("sk-of-no-provider"));
        }
    }
    println!("\nRequests received: CometAPI {}, OpenAI {}.", received().0, received().1);
    println!("Each came with the key of its receiver, and with no other.");
    Ok(())
}

fn question() -> Result<CreateChatCompletionRequest, OpenAIError> {
    CreateChatCompletionRequestArgs::default()
        .model("gpt-4o-mini")
        .messages([ChatCompletionRequestUserMessage::from("Who are you?").into()])
        .build()
}
