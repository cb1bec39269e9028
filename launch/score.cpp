#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "launch/inference.h"
#include "launch/report/progress.h"
#include "model/model_file.h"
#include "parallel/data/token_file.h"
#include "runtime/files/durable.h"

namespace supra {
namespace {

struct ScoreOptions {
  InferenceOptions inference;
  std::string tokens, output;
  int64_t sequence_length = 0;
  int64_t limit = 0;
  bool recurrent = false;
};

/// Rows of tokens: those of a 2-D file, or the windows that training would cut a packed text into.
class Rows {
 public:
  Rows(const ScoreOptions& o, int64_t vocabulary) {
    if (o.sequence_length > 0) {
      text_ = std::make_unique<TokenFile>(o.tokens, vocabulary);
      length_ = o.sequence_length + 1;
      count_ = text_->windows(o.sequence_length);
    } else {
      sequences_ = std::make_unique<SequenceFile>(o.tokens, vocabulary);
      length_ = sequences_->length();
      count_ = sequences_->count();
    }
    if (o.limit > 0) count_ = std::min(count_, o.limit);
    if (length_ < 2) {
      fail_input("{} has sequences of {} token; scoring predicts each token from those before it",
                 o.tokens, length_);
    }
  }
  int64_t count() const { return count_; }
  int64_t length() const { return length_; }
  void read(int64_t begin, int64_t n, int32_t* out) const {
    if (sequences_) {
      sequences_->read(begin, n, out);
    } else {
      for (int64_t i = 0; i < n; ++i) text_->read_window(begin + i, length_ - 1, out + i * length_);
    }
  }

 private:
  std::unique_ptr<TokenFile> text_;
  std::unique_ptr<SequenceFile> sequences_;
  int64_t count_ = 0, length_ = 0;
};

/// Calls score(rows read, how many, logprob [n, length - 1]) batch by batch, and hands each result
/// on.
template <class Score, class Sink>
void for_each_batch(const Rows& rows, int64_t batch, const Score& score, const Sink& sink) {
  std::vector<int32_t> tokens(static_cast<size_t>(batch * rows.length()));
  std::vector<float> logprob(static_cast<size_t>(batch * (rows.length() - 1)));
  for (int64_t begin = 0; begin < rows.count(); begin += batch) {
    const int64_t n = std::min(batch, rows.count() - begin);
    std::fill(tokens.begin(), tokens.end(),
              0);  // a last batch that is not full is filled with id 0
    rows.read(begin, n, tokens.data());
    score(tokens, n, logprob);
    sink(begin, n, logprob);
  }
}

int64_t batch_of(const Rows& rows, int64_t tokens_at_once) {
  return std::clamp<int64_t>(tokens_at_once / rows.length(), 1, rows.count());
}

template <class Sink>
void score_parallel(const ScoreOptions& o, const Rows& rows, const Sink& sink) {
  const int64_t T = rows.length() - 1, batch = batch_of(rows, 4096);
  Inference inference(o.inference, batch, T);
  std::vector<int32_t> inputs(static_cast<size_t>(batch * T)), targets(inputs.size());
  for_each_batch(
      rows, batch,
      [&](const std::vector<int32_t>& tokens, int64_t n, std::vector<float>& logprob) {
        for (int64_t b = 0; b < batch; ++b) {
          const int32_t* row = tokens.data() + b * (T + 1);
          std::copy_n(row, T, inputs.data() + b * T);
          std::copy_n(row + 1, T, targets.data() + b * T);
          if (b >= n) std::fill_n(targets.data() + b * T, T, -1);
        }
        inference.model().evaluate(inputs.data(), targets.data(), logprob.data());
        for (float& x : logprob) x = -x;
      },
      sink);
}

template <class Sink>
void score_recurrent(const ScoreOptions& o, const Rows& rows, const Sink& sink) {
  const int64_t T = rows.length() - 1, batch = batch_of(rows, 32 * rows.length());
  DecoderInference inference(o.inference);
  const auto decoder = inference.make_decoder({.batch = batch, .context = T});
  std::vector<int32_t> column(static_cast<size_t>(batch)), next(column.size());
  std::vector<float> nll(column.size());
  for_each_batch(
      rows, batch,
      [&](const std::vector<int32_t>& tokens, int64_t, std::vector<float>& logprob) {
        decoder->reset();
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t b = 0; b < batch; ++b) {
            const auto i = static_cast<size_t>(b);
            column[i] = tokens[static_cast<size_t>(b * (T + 1) + t)];
            next[i] = tokens[static_cast<size_t>(b * (T + 1) + t + 1)];
          }
          decoder->read(column.data(), 1);
          decoder->next_nll(next.data(), nll.data());
          for (int64_t b = 0; b < batch; ++b) {
            logprob[static_cast<size_t>(b * T + t)] = -nll[static_cast<size_t>(b)];
          }
        }
      },
      sink);
}

void write_scores(const ScoreOptions& o, const std::vector<int64_t>& shape,
                  const std::vector<float>& logprob, double loss) {
  const std::string aside = o.output + ".tmp";
  {
    hdf5::File file = hdf5::File::create(aside);
    file.set("/", "format", std::string("supra-scores 1"));
    file.set("/", "model", o.inference.model);
    file.set("/", "mean_loss", loss);
    file.write_all("/logprob", hdf5::Type::fp32, shape, logprob.data());
    file.flush();
  }
  publish(aside, o.output);
}

ExitCode run_score(const ScoreOptions& o) {
  const Rows rows(o, ModelFile(o.inference.model).config().vocabulary);
  const int64_t T = rows.length() - 1;
  std::vector<float> scores(o.output.empty() ? 0 : static_cast<size_t>(rows.count() * T));
  double sum = 0;
  const auto sink = [&](int64_t begin, int64_t n, const std::vector<float>& logprob) {
    if (!scores.empty()) std::copy_n(logprob.begin(), n * T, scores.begin() + begin * T);
    sum = std::accumulate(logprob.begin(), logprob.begin() + n * T, sum);
  };
  if (o.recurrent) {
    score_recurrent(o, rows, sink);
  } else {
    score_parallel(o, rows, sink);
  }
  const double loss = -sum / static_cast<double>(rows.count() * T);
  if (!std::isfinite(loss)) {
    throw Error(
        ExitCode::not_finite,
        fmt::format("the mean loss of {} is {}: its weights hold values that are not finite; "
                    "see `supra inspect --stats {}`",
                    o.inference.model, loss, o.inference.model));
  }
  if (!o.output.empty()) write_scores(o, {rows.count(), T}, scores, loss);
  fmt::print("mean loss {:.6f} nats/token, perplexity {:.3f}, {} tokens predicted\n", loss,
             std::exp(loss), rows.count() * T);
  return ExitCode::done;
}

}  // namespace

void add_score_command(CLI::App& app, Action& action) {
  const auto o = std::make_shared<ScoreOptions>();
  CLI::App* command =
      app.add_subcommand("score", "Log-probability of every token of a file under a model.");
  command->add_option("MODEL.h5", o->inference.model, "Model file, checkpoint folder or index.h5")
      ->required();
  command
      ->add_option("TOKENS.h5", o->tokens,
                   "File with a dataset `tokens` [N, T]; or a packed text, with --sequence-length")
      ->required();
  command->add_option("--out", o->output, "Write `logprob` [N, T-1], float32, to this file");
  command
      ->add_option("--sequence-length", o->sequence_length,
                   "Score a packed text in windows of this many predictions, as validation does")
      ->check(CLI::PositiveNumber);
  command->add_option("--limit", o->limit, "Only the first so many sequences")
      ->check(CLI::PositiveNumber);
  command->add_flag("--recurrent", o->recurrent,
                    "Compute token by token, as `supra generate` does: linear attention in its "
                    "recurrent form, with constant memory, softmax attention with a cache");
  add_inference_options(*command, o->inference);
  command->callback([o, &action] { action = [o] { return run_score(*o); }; });
}

}  // namespace supra
