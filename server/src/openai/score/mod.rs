//! `POST /v1/score` and `/v1/rerank`: texts compared by the served model.

pub mod compare;
pub mod lower;
pub mod response;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::embeddings::response::ReadUsage;
use crate::openai::exchange::Exchange;
use crate::openai::fields::Fields;
use crate::openai::score::compare::{Comparison, Method, Scores};
use crate::openai::score::lower::{MethodFields, Ranking, RerankFields, ScoreFields};
use crate::openai::score::response::{RerankList, ScoreList, ranked};
use crate::request::ApiRequest;
use axum::extract::State;
use axum::response::Response;
use std::sync::Arc;

pub async fn score(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let mut fields = Fields::parse(&body)?;
    // The texts are there until the answer is.
    let _held = body.parsed();
    let (texts, method) = (ScoreFields::take(&mut fields)?, MethodFields::take(&mut fields)?);
    let ignored = fields.into_ignored()?;
    let (comparison, param) = texts.lower(&exchange.app.limits.request)?;
    let manner = method.lower(param)?;
    let head = exchange.head_for("score-", manner.model.as_deref(), manner.request_id.as_deref())?;
    let Scores { scores, reads, prompt_tokens } = comparison.run(&exchange.service, &manner).await?;
    let timings: Vec<_> = reads.iter().map(|read| read.timings).collect();
    let list = ScoreList::new(&head, &scores, ReadUsage::new(&reads, prompt_tokens));
    Ok(exchange.respond_timed(&timings, &list, &ignored))
}

pub async fn rerank(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let mut fields = Fields::parse(&body)?;
    // The texts are there until the answer is.
    let _held = body.parsed();
    let (ranking, method) = (RerankFields::take(&mut fields)?, MethodFields::take(&mut fields)?);
    let ignored = fields.into_ignored()?;
    let ranking = ranking.lower(&exchange.app.limits.request)?;
    let manner = method.lower("documents")?;
    let head = exchange.head_for("rerank-", manner.model.as_deref(), manner.request_id.as_deref())?;
    let comparison = ranking.comparison(manner.method);
    let Scores { scores, reads, prompt_tokens } = comparison.run(&exchange.service, &manner).await?;
    let Ranking { documents, top_n, return_documents, .. } = &ranking;
    let ranked = ranked(&scores, *top_n);
    let timings: Vec<_> = reads.iter().map(|read| read.timings).collect();
    let documents = return_documents.then_some(&documents[..]);
    let list = RerankList::new(&head, &ranked, documents, ReadUsage::new(&reads, prompt_tokens));
    Ok(exchange.respond_timed(&timings, &list, &ignored))
}

impl Ranking {
    /// By log-probability the question is how probable the query is after a document and a line break: how well the document leads
    /// to it. The other way round, a short or common document would win.
    fn comparison(&self, method: Method) -> Comparison {
        let (query, documents) = (vec![self.query.clone()], self.documents.clone());
        let indices = 0..documents.len();
        match method {
            Method::Cosine(_) => {
                Comparison { first: query, second: documents, pairs: indices.map(|i| (0, i)).collect() }
            }
            Method::Logprob(_) => Comparison {
                first: documents.into_iter().map(|document| document + "\n").collect(),
                second: query,
                pairs: indices.map(|i| (i, 0)).collect(),
            },
        }
    }
}
