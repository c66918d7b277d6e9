//! Messages: three constant questions and their answers.
//!
//! A server of 1.14 or older aborts on an empty message, and some questions change the cluster, so nothing but these
//! constants is ever sent, one at a time.

use super::bytes::Bytes;
use super::membership::{MAX_ADDRESS, MAX_MEMBERS};
use super::{Malformed, Member, Role};

/// What a client says first; the server does not answer it.
pub const HELLO: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
/// Length of a message's header.
pub const HEADER: usize = 8;
/// No answer is longer than this many bytes.
const MAX_ANSWER: usize = 64 << 10;
/// No message of an error is longer.
const MAX_TEXT: usize = 1024;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Who leads. Only a voter knows.
    Leader,
    /// Who belongs to the cluster, as this member has it; answered without a leader too.
    Cluster,
    /// In which failure domain this member is.
    Describe,
}

impl Request {
    /// The word for it in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Cluster => "cluster",
            Self::Describe => "describe",
        }
    }

    /// The message: one word of eight bytes, the type, and the version of the answer.
    pub fn message(self) -> [u8; 16] {
        let (kind, version) = match self {
            Self::Leader => (0, 0),
            Self::Cluster => (16, 1),
            Self::Describe => (18, 0),
        };
        [1, 0, 0, 0, kind, 0, 0, 0, version, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The leader's id; `None` when it knows of none, or is no voter.
    Leader(Option<u64>),
    /// The members.
    Cluster(Vec<Member>),
    /// The failure domain.
    Describe(u64),
    /// The server's own word that it cannot answer.
    Failure(u64, String),
}

/// Length of the body and type of a message, from its header.
///
/// # Errors
///
/// When it is longer than any answer is.
pub fn header(bytes: [u8; HEADER]) -> Result<(usize, u8), Malformed> {
    let mut bytes = Bytes(&bytes);
    let words = bytes.u32().unwrap_or_default();
    let kind = bytes.u8().unwrap_or_default();
    let length = usize::try_from(words).unwrap_or(usize::MAX).saturating_mul(8);
    if length > MAX_ANSWER {
        return Err(Malformed::new(format!("an answer of {words} words")));
    }
    Ok((length, kind))
}

/// Reads the answer of type `kind` to a question.
///
/// # Errors
///
/// When it is no answer to that question.
pub fn answer(request: Request, kind: u8, body: &[u8]) -> Result<Answer, Malformed> {
    let mut body = Bytes(body);
    let found = match (request, kind) {
        (_, 0) => failure(&mut body),
        (Request::Leader, 1) => leader(&mut body),
        (Request::Cluster, 3) => members(&mut body),
        (Request::Describe, 10) => body.u64().map(Answer::Describe),
        _ => {
            let what = format!("an answer of type {kind} to {}", request.as_str());
            return Err(Malformed::new(what));
        }
    };
    found.ok_or_else(|| Malformed::new(format!("a damaged answer to {}", request.as_str())))
}

fn failure(body: &mut Bytes<'_>) -> Option<Answer> {
    let code = body.u64()?;
    Some(Answer::Failure(code, body.padded_text(MAX_TEXT)?.to_owned()))
}

fn leader(body: &mut Bytes<'_>) -> Option<Answer> {
    let id = body.u64()?;
    body.padded_text(MAX_ADDRESS)?;
    Some(Answer::Leader((id != 0).then_some(id)))
}

fn members(body: &mut Bytes<'_>) -> Option<Answer> {
    let n = usize::try_from(body.u64()?).ok().filter(|n| *n <= MAX_MEMBERS)?;
    let mut members = Vec::new();
    for _ in 0..n {
        let id = body.u64()?;
        let address = body.padded_text(MAX_ADDRESS)?.to_owned();
        members.push(Member { id, address, role: Role::of_wire(body.u64()?)? });
    }
    Some(Answer::Cluster(members))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<char> = hex.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
        digits.chunks(2).map(|pair| byte(pair).unwrap()).collect()
    }

    /// The exchanges of the samples: the question, if it is one of ours, and the answer.
    fn exchanges() -> Vec<(String, Option<Request>, Vec<u8>)> {
        let text = String::from_utf8(sample("wire-captures.txt")).unwrap();
        let (mut block, mut asked, mut found) = (String::new(), None, Vec::new());
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                title.clone_into(&mut block);
            } else if let Some(question) = line.strip_prefix("> ") {
                let question = bytes(question);
                let all = [Request::Leader, Request::Cluster, Request::Describe];
                asked = all.into_iter().find(|request| request.message()[..] == question);
            } else if let Some(answer) = line.strip_prefix("< ") {
                found.push((block.clone(), asked, bytes(answer)));
            }
        }
        found
    }

    fn read(request: Request, message: &[u8]) -> Result<Answer, Malformed> {
        let (head, body) = message.split_at(HEADER);
        let (length, kind) = header(head.try_into().unwrap())?;
        assert_eq!(body.len(), length);
        answer(request, kind, body)
    }

    #[test]
    fn the_answers_of_real_servers_are_understood() {
        let mut seen = [0; 3];
        for (block, request, message) in exchanges() {
            let Some(request) = request else { continue };
            match read(request, &message).unwrap() {
                Answer::Leader(leader) => {
                    seen[0] += 1;
                    let expected = match block.as_str() {
                        b if b.contains("no quorum") || b.contains("asked on a stand-by") => None,
                        b if b.contains("5 members") => Some(7_767_700_068_979_770_475),
                        _ => Some(3_297_041_220_608_546_238),
                    };
                    assert_eq!(leader, expected, "{block}");
                }
                Answer::Cluster(members) => {
                    seen[1] += 1;
                    let voters = members.iter().filter(|member| member.role == Role::Voter);
                    assert_eq!(voters.count(), if block.contains("single") { 1 } else { 3 });
                }
                Answer::Describe(domain) => {
                    seen[2] += 1;
                    assert_eq!(domain, 0);
                }
                Answer::Failure(..) => panic!("{block}"),
            }
        }
        assert_eq!(seen, [6, 6, 5]);
    }

    #[test]
    fn the_words_of_a_server_that_refuses_are_kept() {
        let refused = exchanges()
            .into_iter()
            .filter(|(_, request, message)| request.is_none() && message[4] == 0);
        let texts: Vec<_> =
            refused.map(|(_, _, message)| read(Request::Leader, &message)).collect();
        assert_eq!(texts.len(), 6);
        let first = Answer::Failure(1005, "unrecognized request type".into());
        assert_eq!(texts[0], Ok(first));
    }

    #[test]
    fn an_answer_beyond_all_measure_is_refused_before_it_is_read() {
        assert!(header([0xff; 8]).is_err());
        assert!(header([1, 0x20, 0, 0, 1, 0, 0, 0]).is_err());
        assert_eq!(header([0, 0x20, 0, 0, 1, 0, 0, 0]).unwrap(), (MAX_ANSWER, 1));
        let many = [&257_u64.to_le_bytes()[..], &[0; 8192]].concat();
        assert!(answer(Request::Cluster, 3, &many).is_err());
        assert!(answer(Request::Leader, 3, &[0; 16]).is_err(), "an answer to something else");
    }

    proptest! {
        #[test]
        fn no_answer_panics(kind in 0_u8..20, body: Vec<u8>, n in 0_u64..4, head: [u8; 8]) {
            for request in [Request::Leader, Request::Cluster, Request::Describe] {
                drop(answer(request, kind, &body));
                drop(answer(request, 3, &[&n.to_le_bytes()[..], &body].concat()));
            }
            drop(header(head));
        }
    }
}
