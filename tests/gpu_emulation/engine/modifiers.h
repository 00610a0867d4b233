// What an opcode says after its name, ticked off word by word: a binder takes what it gives a
// meaning to, and an instruction with a word left over is not known. So no modifier is ever ignored
// by oversight.
#pragma once
#include <initializer_list>

#include "program.h"

namespace emu {

class Modifiers {
  public:
    explicit Modifiers(const Opcode& op) : words_(op.modifiers) { take(""); }

    bool take(std::string_view word) {
        for (size_t i = 0; i < words_.size(); ++i)
            if (words_[i] == word) {
                words_.erase(words_.begin() + static_cast<std::ptrdiff_t>(i));
                return true;
            }
        return false;
    }
    // The first of the words that the opcode has, as its place in the list; -1 without any.
    int take_one_of(std::initializer_list<std::string_view> words) {
        int place = 0;
        for (auto word : words) {
            if (take(word)) return place;
            ++place;
        }
        return -1;
    }
    // All words that begin so: hints for a cache.
    void take_beginning(std::string_view begin) {
        std::erase_if(words_, [&](auto word) { return word.starts_with(begin); });
    }
    // Types stand at the end, operations at the front.
    std::string_view take_last() { return take_at(words_.size() - 1); }
    std::string_view take_first() { return take_at(0); }
    bool none_left() const { return words_.empty(); }

  private:
    std::string_view take_at(size_t place) {
        if (place >= words_.size()) return {};
        auto word = words_[place];
        words_.erase(words_.begin() + static_cast<std::ptrdiff_t>(place));
        return word;
    }
    std::vector<std::string_view> words_;
};

}  // namespace emu
