//! What the errors of JSON-RPC mean, for Ethereum's nodes, Solana's, and the services in front of them.
//!
//! Codes alone do not tell: `-32005` is a limit at Infura, a node that lags at Solana, and at both sides of
//! a query that finds too much; `-32000` is anything. So the message is looked at first.
//!
//! Sources: <https://www.jsonrpc.org/specification>, <https://eips.ethereum.org/EIPS/eip-1474>,
//! <https://github.com/anza-xyz/agave/blob/master/rpc-client-api/src/custom_error.rs>,
//! <https://docs.metamask.io/services/reference/ethereum/json-rpc-methods/>,
//! <https://www.alchemy.com/docs/reference/error-reference>,
//! <https://www.quicknode.com/docs/ethereum/error-references>.

use super::codes::Means;

/// Words in a message, in lower case, that say more than the code.
const PHRASES: [(&str, Means); 16] = [
    // The request's own fault, whatever the code.
    ("execution reverted", Means::Request),
    ("query returned more than", Means::Request),
    ("block range", Means::Request),
    ("response size exceeded", Means::Request),
    // Infura, Alchemy, QuickNode and others.
    ("daily request count exceeded", Means::Quota),
    ("monthly capacity limit", Means::Quota),
    ("rate limit", Means::Limit),
    ("request limit", Means::Limit),
    ("limit exceeded", Means::Limit),
    ("too many requests", Means::Limit),
    ("compute units per second", Means::Limit),
    // A node that lags, or has thrown old state away. Another may have it.
    ("header not found", Means::Failed),
    ("missing trie node", Means::Failed),
    ("node is behind", Means::Overloaded),
    ("request timed out", Means::TimedOut),
    ("no backends available", Means::Overloaded),
];

/// What an error means.
pub(super) fn means(code: i64, message: &str) -> Means {
    let said = message.as_bytes();
    let holds = |phrase: &str| {
        said.windows(phrase.len()).any(|part| part.eq_ignore_ascii_case(phrase.as_bytes()))
    };
    if let Some((_, means)) = PHRASES.iter().find(|(phrase, _)| holds(phrase)) {
        return *means;
    }
    match code {
        // A contract that refuses.
        3 => Means::Request,
        // Not JSON, no request, no such method, wrong parameters.
        -32700 | -32602..=-32600 => Means::Request,
        -32603 => Means::Failed,
        // Infura's limit; a node of Solana's that lags.
        -32005 => Means::Limit,
        // Solana: the block is cleaned up, not there, or not there yet; no snapshot; a key or a history
        // that this node does not index; the node has not reached the slot.
        -32001 | -32004 | -32008 | -32010 | -32011 | -32014 | -32016 => Means::Failed,
        // A service in front of the node uses statuses.
        401 => Means::Key,
        403 => Means::Denied,
        429 => Means::Limit,
        500..=599 => Means::Failed,
        // The others are words about the request: a failed simulation, a wrong signature, a skipped slot,
        // a nonce that is too low.
        -32099..=-32000 => Means::Request,
        _ => Means::Unknown,
    }
}
