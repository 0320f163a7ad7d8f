//! An HTTP/2 server on the `h2` crate. What that crate would never do is written to the socket as well,
//! frame by frame.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::script::{Act, End, ms, perform};
use crate::server::{Fault, Seen};
use crate::support::Received;

/// What goes wrong on an HTTP/2 connection once the whole request has arrived.
#[derive(Clone)]
pub(crate) enum Http2 {
    /// The stream is reset before any answer.
    Reset(Reason),
    /// These acts in place of an answer.
    Raw(Vec<Act>),
    /// Headers with this status and half a body, then a reset.
    HalfThenReset(u16, Reason),
    /// Headers with this status and half a body, then these acts.
    HalfThenRaw(u16, Vec<Act>),
    /// A complete answer with this status.
    Status(u16),
    /// This for the first request, and an answer for those that follow.
    Once(Box<Http2>),
}

/// A GOAWAY frame: the last stream that was or may be processed, and why.
pub(crate) fn go_away(last_stream: u32, reason: Reason) -> Vec<u8> {
    let mut payload = BytesMut::new();
    payload.put_u32(last_stream);
    payload.put_u32(reason.into());
    frame(7, 0, 0, &payload)
}

/// A DATA frame of the first request's stream without any data.
pub(crate) fn empty_data() -> Vec<u8> {
    frame(0, 0, 1, &[])
}

/// Any frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame.to_vec()
}

/// Serves HTTP/2 until either side has had enough.
pub(crate) async fn serve(socket: &mut TcpStream, seen: &Arc<Seen>) -> End {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (inject, injected) = unbounded_channel();
    tokio::select! {
        end = pump(socket, far, injected, seen) => end,
        () = answer(near, seen, inject) => End::Fin,
    }
}

/// Carries bytes between the socket and the `h2` server, until something else is to be sent.
async fn pump(
    socket: &mut TcpStream,
    mut far: DuplexStream,
    mut injected: UnboundedReceiver<Vec<Act>>,
    seen: &Seen,
) -> End {
    let (mut from_client, mut from_server) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        tokio::select! {
            // What the server wrote before goes out before.
            biased;
            read = far.read(&mut from_server) => match read {
                Ok(read @ 1..) => {
                    if socket.write_all(&from_server[..read]).await.is_err() {
                        return End::Fin;
                    }
                }
                _ => return End::Fin,
            },
            read = socket.read(&mut from_client) => match read {
                Ok(read @ 1..) => {
                    if far.write_all(&from_client[..read]).await.is_err() {
                        return End::Fin;
                    }
                }
                _ => return End::Fin,
            },
            Some(acts) = injected.recv() => {
                let count = |bytes| seen.count_sent(bytes);
                // Meanwhile no ping is answered.
                if let Err(end) = perform(&acts, socket, &count).await {
                    return end;
                }
            }
        }
    }
}

async fn answer(near: DuplexStream, seen: &Arc<Seen>, inject: UnboundedSender<Vec<Act>>) {
    let connection = seen.open_log();
    let Ok(mut h2) = h2::server::handshake(near).await else { return };
    while let Some(Ok((request, respond))) = h2.accept().await {
        let (seen, inject) = (seen.clone(), inject.clone());
        tokio::spawn(async move {
            let _ = respond_to(request, respond, connection, &seen, &inject).await;
        });
    }
}

async fn respond_to(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    connection: usize,
    seen: &Seen,
    inject: &UnboundedSender<Vec<Act>>,
) -> Result<(), h2::Error> {
    seen.count_head();
    let received = receive(request, connection, seen).await?;
    seen.keep(received);
    let asked = &seen.asked;
    let head = |status: u16| {
        let head = Response::builder().status(status).header("x-server", asked.server);
        head.header("content-type", "application/json").body(()).expect("a response")
    };
    let whole = |status| match status {
        200 => asked.fine_body(),
        status => asked.said(status),
    };
    let fault = match seen.fault() {
        Some(Fault::Http2(Http2::Once(fault))) if seen.heads() == 1 => (**fault).clone(),
        Some(Fault::Http2(Http2::Once(_))) | None => Http2::Status(200),
        Some(Fault::Http2(fault)) => fault.clone(),
        Some(_) => Http2::Status(200),
    };
    match fault {
        Http2::Reset(reason) => respond.send_reset(reason),
        Http2::Raw(acts) => {
            let _ = inject.send(acts);
            // Dropping it would reset the stream.
            let _ = poll_fn(|context| respond.poll_reset(context)).await;
        }
        // Is told apart above.
        Http2::Once(_) => {}
        Http2::Status(status) => {
            let mut body = respond.send_response(head(status), false)?;
            body.send_data(whole(status).into(), true)?;
        }
        Http2::HalfThenReset(status, reason) => {
            let mut body = respond.send_response(head(status), false)?;
            body.send_data(half(whole(status)), false)?;
            tokio::time::sleep(ms(50)).await;
            body.send_reset(reason);
        }
        Http2::HalfThenRaw(status, acts) => {
            let mut body = respond.send_response(head(status), false)?;
            body.send_data(half(whole(status)), false)?;
            tokio::time::sleep(ms(50)).await;
            let _ = inject.send(acts);
            let _ = poll_fn(|context| body.poll_reset(context)).await;
        }
    }
    Ok(())
}

fn half(mut text: String) -> Bytes {
    text.truncate(text.len() / 2);
    text.into()
}

async fn receive(
    request: Request<RecvStream>,
    connection: usize,
    seen: &Seen,
) -> Result<Received, h2::Error> {
    let (head, mut body) = request.into_parts();
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let mut received = Received {
        index: 0,
        method: head.method.to_string(),
        target,
        headers: vec![("host".to_owned(), head.uri.authority().map(ToString::to_string))]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect(),
        body: Vec::new(),
    };
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        received.headers.push((name.to_string(), value));
    }
    seen.log(connection, format!("{} {}\n", received.method, head.uri).as_bytes());
    for (name, value) in &received.headers {
        seen.log(connection, format!("{name}: {value}\n").as_bytes());
    }
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        seen.log(connection, &data);
        received.body.extend_from_slice(&data);
    }
    Ok(received)
}
